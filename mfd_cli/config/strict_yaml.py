"""YAML as recipes use it: plain data with the line of every key, nothing else.

The text is composed into nodes and never constructed into objects. Scalars are YAML 1.2's (`1e-4` is a number, `on` is
text); what two YAML versions read differently (`010`, `1_000`, `12:30`) is refused. Tags, anchors, aliases and merge
keys are refused, so a file cannot name code and cannot grow when it is read.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]

#: deeper than any recipe; bounds the recursion on hostile input
_DEEPEST = 20

_LONGEST_NUMBER = 100  # characters

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_ODD = {
    "leading zeros, octal for some readers": re.compile(r"[-+]?0[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?|[-+]?0o[0-7]+"),
    "underscores in a number": re.compile(r"(?=[^_]*_)[-+]?\.?[0-9][0-9_.]*([eE][-+]?[0-9_]+)?"),
    "digits with ':', a base-60 number for some readers": re.compile(r"[-+]?[0-9]+(:[0-9]+)+(\.[0-9]*)?"),
    "a hexadecimal or binary number": re.compile(r"[-+]?0[xXbB][0-9a-fA-F_]+"),
}
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong: where (`file:line` or the option), in which key, and what."""

    where: str
    key: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.what) if part)


@dataclass
class Document:
    """What a text says.

    Attributes:
        data: dicts, lists, text, numbers, booleans and None; what could not be read is None.
        positions: where each key or list item stands, by its path; the root's is ().
        mistakes: what was refused.
    """

    data: Any = None
    positions: dict[Path, str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)


class OddScalar(ValueError):
    """A scalar that is refused; the message says how to write it instead."""


def dotted(path: Path) -> str:
    """`train.updates` or `optim.student.betas[0]` from a path."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def scalar(text: str) -> Any:
    """Value of a plain (unquoted) scalar.

    Raises:
        OddScalar: not finite, or a number for one YAML version and something else for another.
    """
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _LONGEST_NUMBER:
        return _long(text)
    if _INTEGER.fullmatch(text):
        if len(text) > 20:
            raise OddScalar(f"{text[:20]}... has too many digits; quote it if it is text")
        return int(text)
    if _FLOAT.fullmatch(text):
        return _finite(text)
    if _NOT_FINITE.fullmatch(text):
        raise OddScalar(f"{text} is not a finite number; write a finite one, or null where the key allows it")
    for reason, pattern in _ODD.items():
        if pattern.fullmatch(text):
            raise OddScalar(f'{text} has {reason}; write a plain decimal number, or "{text}" for text')
    return text


def parse(text: str, source: str, *, line_numbers: bool = True) -> Document:
    """Reads a text into data, positions and mistakes; never raises for what the text says.

    Args:
        text: the YAML text.
        source: name shown in positions.
        line_numbers: append the line to the name (an option has none).
    """
    reader = _Reader(source, line_numbers)
    tabs = [number for number, line in enumerate(text.splitlines(), 1) if "\t" in line]
    if tabs:
        for number in tabs[:10]:
            reader.refuse(number - 1, (), "a tab character; use spaces")
        return reader.document
    try:
        node = _Nodes(text, reader).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reader.refuse(mark.line if mark else 0, (), _syntax(error))
        return reader.document
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        reader.refuse(line, (), f"the character U+{ord(text[error.position]):04X} is not allowed in YAML")
        return reader.document
    if node is not None:
        reader.document.data = reader.value(node, ())
    return reader.document


def dump(data: dict[str, Any]) -> str:
    """YAML text that `parse` reads back to the same data (finite numbers only)."""
    return yaml.dump(data, Dumper=_Writer, sort_keys=False, default_flow_style=False, allow_unicode=True, width=110)


def _long(text: str) -> str:
    if not text.strip("+-.0123456789eE_:"):
        raise OddScalar(f"{text[:20]}... has too many digits; quote it if it is text")
    return text


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise OddScalar(f"{text} is too large for a number")
    if number == 0 and re.search(r"[1-9]", re.split("[eE]", text)[0]):
        raise OddScalar(f"{text} is too small for a number, it would be read as 0")
    return number


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "not YAML"
    if "mapping values are not allowed" in problem:
        return "a ':' where no key can stand; indent the line to its block, or quote text that contains ': '"
    return f"not YAML: {problem}; check indentation, brackets and quotes"


class _Reader:
    """Turns nodes into data, noting positions and mistakes on the way."""

    def __init__(self, source: str, line_numbers: bool) -> None:
        self.source, self.line_numbers = source, line_numbers
        self.document = Document(positions={(): self.where(0)})

    def where(self, line: int) -> str:
        return f"{self.source}:{line + 1}" if self.line_numbers else self.source

    def refuse(self, line: int, path: Path, what: str) -> None:
        self.document.mistakes.append(Mistake(self.where(line), dotted(path), what))

    def value(self, node: yaml.Node, path: Path) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                inner = (*path, index)
                self.document.positions[inner] = self.where(item.start_mark.line)
                items.append(self.value(item, inner))
            return items
        assert isinstance(node, yaml.ScalarNode)
        return self.leaf(node, path)

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        block: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line
            key = self.key(key_node, path)
            if key is None:
                continue
            inner = (*path, key)
            if key in block:
                self.refuse(line, inner, f"written twice, first in line {first[key] + 1}; keep one")
                continue
            first[key] = line
            self.document.positions[inner] = self.where(line)
            block[key] = self.value(value_node, inner)
        return block

    def key(self, node: yaml.Node, path: Path) -> str | None:
        line = node.start_mark.line
        if not isinstance(node, yaml.ScalarNode):
            self.refuse(line, path, "a list or block as a key; a key is a name")
            return None
        if node.style is None and node.value == "<<":
            self.refuse(line, path, "the merge key '<<'; write the keys out")
            return None
        key = self.leaf(node, path)
        if not isinstance(key, str):
            self.refuse(line, path, f"'{node.value}' as a key; a key is a name")
            return None
        return key

    def leaf(self, node: yaml.ScalarNode, path: Path) -> Any:
        try:
            value = scalar(node.value) if node.style is None else node.value
        except OddScalar as odd:
            self.refuse(node.start_mark.line, path, str(odd))
            return None
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            self.refuse(node.start_mark.line, path, "half of a surrogate pair, which is no character")
            return None
        if isinstance(value, str) and "\0" in value:
            self.refuse(node.start_mark.line, path, "the character NUL, which no name or path can have")
            return None
        return value


class _Nodes(yaml.SafeLoader):
    """PyYAML's composer, refusing what turns a text into more than data. Its constructor is never called."""

    def __init__(self, text: str, reader: _Reader) -> None:
        super().__init__(text)
        self._reader, self._depth = reader, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        line = event.start_mark.line
        if isinstance(event, yaml.AliasEvent):
            self.get_event()
            self._reader.refuse(line, (), f"the alias '*{event.anchor}'; write the value out")
            marks: Any = (event.start_mark, event.end_mark)
            return yaml.ScalarNode("tag:yaml.org,2002:null", "", *marks)
        if getattr(event, "anchor", None):
            self._reader.refuse(line, (), f"the anchor '&{event.anchor}'; write the value out where it is used")
            event.anchor = None
        if getattr(event, "tag", None):
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._reader.refuse(line, (), f"the tag '{tag}'; a recipe is plain data and names no types or code")
            event.tag = None
        if self._depth >= _DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"more than {_DEEPEST} levels", problem_mark=event.start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Writer(yaml.SafeDumper):
    """Block style, short lists in one line, no aliases, and text quoted wherever `scalar` would not give it back."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, value: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=None if _plain(value) else '"')

    def items(self, value: list[Any] | tuple[Any, ...]) -> yaml.SequenceNode:
        short = not any(isinstance(item, (dict, list, tuple)) for item in value)
        return self.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=short)


_Writer.add_representer(str, _Writer.text)
_Writer.add_representer(list, _Writer.items)
_Writer.add_representer(tuple, _Writer.items)


def _plain(text: str) -> bool:
    """Whether the text, written without quotes, is read as itself."""
    try:
        return text.isprintable() and text != "<<" and scalar(text) == text
    except OddScalar:
        return False
