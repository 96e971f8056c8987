"""How `fuzz.py` breaks files, and the recipes that it breaks."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from mfd_cli.config import bundled
from mfd_cli.config.load import dump, load_any


@dataclass
class Target:
    """A file that is broken, and a reader that must not mind.

    Attributes:
        name: what it is.
        path: the file.
        content: it, whole.
        breaks: ways to break it.
        read: reads it; is given the example's random numbers.
    """

    name: str
    path: Path
    content: bytes
    breaks: tuple[Callable[[bytes, Random], bytes], ...]
    read: Callable[[Random], Any]

    def broken(self, random: Random) -> bytes:
        """The content after one to three changes."""
        content = self.content
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            content = random.choice(self.breaks)(content, random)
        return content


# bytes --------------------------------------------------------------------------------------------------------------


def bytes_changed(content: bytes, random: Random) -> bytes:
    """Bits flipped, or a piece cut, repeated, zeroed, inserted or moved."""
    if not content:
        return random.randbytes(random.randint(1, 40))
    start = random.randrange(len(content))
    end = min(len(content), start + random.choice((1, 2, 8, 64, len(content))))
    piece = content[start:end]
    kind = random.randrange(8)
    if kind == 0:
        return content[:start] + bytes([content[start] ^ (1 << random.randrange(8))]) + content[start + 1 :]
    if kind == 1:
        return content[:start]
    if kind == 2:
        return content[:start] + content[end:]
    if kind == 3:
        return content[:end] + piece + content[end:]
    if kind == 4:
        return content[:start] + bytes(len(piece)) + content[end:]
    if kind == 5:
        return content[:start] + random.randbytes(random.randint(1, 16)) + content[start:]
    if kind == 6:
        return content[:start] + content[end:] + piece
    return content + random.randbytes(random.randint(1, 9))


def length_changed(content: bytes, random: Random) -> bytes:
    """Another header length in a safetensors file."""
    sizes = (0, 1, 7, 8, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, len(content), len(content) - 8, random.randrange(10**9))
    return struct.pack("<Q", random.choice(sizes) % 2**64) + content[8:]


# JSON ---------------------------------------------------------------------------------------------------------------

NUMBERS = (0, -1, 1, 2, 2**31, 2**63, 2**64, 10**400, -(2**63), 0.5, 1e308, 1e-320, float("nan"), float("inf"))
DEPTHS = (50, 990, 5000)
TEXTS = (
    "", " ", "x", "../../etc/passwd", "/etc/passwd", "a\0b", "\x1b[31m", "\u202e", "\ud800", "é" * 500, "x" * 100_000,
    "__class__", "F32", "F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3",
    "C64", "U64", "U16", "os:system", "https://example.org/x.py",
)  # fmt: skip
VALUES = (
    *NUMBERS,
    *TEXTS,
    None,
    True,
    False,
    [],
    {},
    [0],
    [[]],
    {"": None},
    [0, 2**62],
    [2**62, 2**62],
    [0, 2**64 - 1],
)


def value_changed(data: Any, random: Random) -> Any:
    """A copy of JSON data with one place changed."""
    if isinstance(data, dict) and data and random.random() < 0.9:
        data, key = dict(data), random.choice(list(data))
        kind = random.randrange(8)
        if kind == 0:
            del data[key]
        elif kind == 1:
            data[random.choice([text for text in TEXTS if len(text) < 1000])] = data.pop(key)
        elif kind == 2:
            data[f"{key}x"] = data[key]
        else:
            data[key] = value_changed(data[key], random)
        return data
    if isinstance(data, list) and data and random.random() < 0.8:
        data, index = list(data), random.randrange(len(data))
        kind = random.randrange(6)
        if kind == 0:
            del data[index]
        elif kind == 1:
            data.insert(index, data[index])
        elif kind == 2:
            data[index] = random.choice(VALUES)
        else:
            data[index] = value_changed(data[index], random)
        return data
    if type(data) is int and random.random() < 0.5:
        return data + random.choice((-1, 1, 8, 1000))
    if random.random() < 0.02:
        return f"@deep{random.choice(DEPTHS)}@"  # lists in lists, which no encoder would write
    return random.choice(VALUES)


def written(data: Any) -> bytes:
    """JSON text of data, whatever is in it."""
    text = json.dumps(data)
    for depth in DEPTHS:
        text = text.replace(f'"@deep{depth}@"', "[" * depth + "]" * depth)
    return text.encode("utf-8", "surrogatepass")


def json_changed(content: bytes, random: Random) -> bytes:
    """A JSON document with one place changed, or a key written twice."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return bytes_changed(content, random)
    text = written(value_changed(data, random))
    return text[:1] + text[1:-1] + b"," + text[1:] if random.random() < 0.05 and len(text) > 2 else text


def header_changed(content: bytes, random: Random) -> bytes:
    """A safetensors file whose header has one place changed; its length is right."""
    size = struct.unpack("<Q", content[:8].ljust(8, b"\0"))[0]
    header = json_changed(content[8 : 8 + size] if size < len(content) else b"{}", random)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def metadata_changed(content: bytes, random: Random) -> bytes:
    """A safetensors file in which mfd's own JSON has one place changed."""
    size = struct.unpack("<Q", content[:8].ljust(8, b"\0"))[0]
    try:
        header = json.loads(content[8 : 8 + size])
        inner = json_changed(header["__metadata__"]["mfd"].encode(), random)
        header["__metadata__"]["mfd"] = inner.decode("utf-8", "replace")
        text = json.dumps(header).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return header_changed(content, random)
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def many_tensors(content: bytes, random: Random) -> bytes:
    """A safetensors file of 10,000 tensors without content."""
    header = {f"t{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(10_000)}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


# YAML ---------------------------------------------------------------------------------------------------------------

SCALARS = (
    "", "~", "null", "true", "on", "yes", "010", "0x1F", "1_000", "12:30", "1e-4", "1e400", "1e-400", ".nan", "-.inf",
    "9" * 50, "9" * 5000, "-0", "+1", "1.", ".5", "'text'", '"\\ud800"', '"\\x1b[31m"', "!!binary aGk=", "&a x", "*a",
    "!!python/object:os.system x", "<<", "{}", "[]", "[1, 2]", "{a: 1}", "[" * 300, "{a: " * 300, "|\n  text",
    ">-\n  x", "2026-01-01", "os.system", "module:thing", "https://example.org/x", "../../x", "/dev/zero", "a\tb",
    "\u202e", "é",
)  # fmt: skip
LINES = (
    "%YAML 1.1", "---", "...", "<<: {a: 1}", "? [a]\n: b", "name: again", "\t", "- x", "# x", ":", "a: b: c", "\ufeff",
    "x: &a [*a]", "a: &a {b: *a}", "!!python/name:os.system", "key: !<tag:yaml.org,2002:int> 3", "'", '"', "}", "]",
    "@x", "`x`",
)  # fmt: skip


def line_changed(content: bytes, random: Random) -> bytes:
    """A recipe with one line dropped, repeated, moved, indented, misspelt, or given another value."""
    lines = content.decode("utf-8", "replace").split("\n")
    index = random.randrange(len(lines))
    line = lines[index]
    kind = random.randrange(8)
    if kind == 0:
        del lines[index]
    elif kind == 1:
        lines.insert(random.randrange(len(lines) + 1), line)
    elif kind == 2:
        lines.insert(random.randrange(len(lines)), lines.pop(index))
    elif kind == 3:
        lines[index] = " " * random.choice((1, 2, 4, 40)) + line
    elif kind == 4:
        lines.insert(index, random.choice(LINES))
    elif kind == 5 and len(line) > 3:
        at = random.randrange(len(line))
        lines[index] = line[:at] + random.choice("abz:_{}[]#'\"!&*|>%@ ") + line[at + random.randrange(2) :]
    else:
        key, colon, _ = line.partition(":")
        lines[index] = f"{key}{colon} {random.choice(SCALARS)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def recipe_changed(content: bytes, random: Random) -> bytes:
    """A recipe with one place of its data changed, as PyYAML writes it."""
    try:
        data = yaml.safe_load(content)
        return yaml.safe_dump(value_changed(data, random), allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        return line_changed(content, random)


def block_exchanged(content: bytes, random: Random) -> bytes:
    """A recipe with one block of another one."""
    others = list(bundled.recipes().values())
    try:
        data, other = (yaml.safe_load(text) for text in (content, random.choice(others).read_bytes()))
        key = random.choice(list(other))
        return yaml.safe_dump({**data, key: other[key]}).encode()
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        return line_changed(content, random)


def overrides(random: Random) -> list[str]:
    """None, or some --set texts."""
    keys = ("train.updates", "method.type", "teacher.type", "teacher", "optim.student.lr", "data.path", "x.y", "",
            "a..b", "log", "student.steps", "method.solver", "method.times.type", "network", "seed.x",
            "name")  # fmt: skip
    count = random.choice((0, 0, 1, 2))
    return [f"{random.choice(keys)}{random.choice(('=', '=', '=', '', ' = '))}{random.choice(SCALARS)}"
            for _ in range(count)]  # fmt: skip


def recipe_targets(home: Path) -> list[Target]:
    """One for every recipe that ships with mfd."""
    path, again = home / "recipe.yaml", home / "again.yaml"
    again.touch()

    def read(random: Random) -> None:
        loaded = load_any(str(path), overrides(random))
        again.write_text(dump(loaded.resolved), encoding="utf-8")
        if load_any(str(again)).resolved != loaded.resolved:
            raise AssertionError("its dump is another recipe")

    path.touch()
    ways = (bytes_changed, line_changed, line_changed, line_changed, recipe_changed, recipe_changed, block_exchanged)
    return [Target(name, path, file.read_bytes(), ways, read) for name, file in bundled.recipes().items()]
