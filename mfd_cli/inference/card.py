"""Model cards: what an export is, where it comes from, how it was checked, how to load it.

A card tells nothing of the machine that it was written on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

CARD = "README.md"
#: begins the card of a single file
CARD_MARK = "library_name: mfd\n"

_CONTENT = re.compile(r"^mfd_export: ([0-9a-f]{64})$", re.MULTILINE)
_PLAIN = re.compile(r"[A-Za-z0-9][\w.+/:-]*", re.ASCII)
_TAGS = "tags: [flow-matching, distillation, few-step]"


def model_card(
    config: Mapping[str, Any], file: str, digest: str, check: str, benchmark: Mapping[str, Any] | None = None
) -> str:
    """The README of a single-file export."""
    holds = f"`{file}`, weights in {config.get('dtype', 'fp32')}, SHA-256 `{digest}`."
    if config["student"].get("weights") == "lora":
        holds += f" It is an adapter alone: mfd puts it on its base, {_base(config)}, which has to be there as well."
    return _assembled(
        [f"---\n{CARD_MARK}{_TAGS}\n---", *_introduction(config)],
        f"## File\n\n{holds} Its header (key `mfd`) holds everything that sampling needs. "
        f"Checked after writing: {check}.",
        f'## Use\n\n```python\nfrom mfd_cli import load_student\n\nstudent = load_student("{file}")\n'
        f"samples = student.sample(16, seed=0)\n```\n\nor `mfd sample {file}`.",
        *_ending(config, {}, benchmark),
    )


def pipeline_card(
    config: Mapping[str, Any],
    content: str,
    digests: Mapping[str, str],
    check: str,
    use: str,
    *,
    adapter: bool,
    notes: Sequence[str] = (),
    licence: Mapping[str, str] | None = None,
    benchmark: Mapping[str, Any] | None = None,
) -> str:
    """The README of an export for diffusers.

    Args:
        config: the student's, as exported.
        content: what tells this export from others (`content_of` finds it again).
        digests: SHA-256 by file.
        check: what was found when it was checked.
        use: Python code that samples.
        adapter: whether it is an adapter, or a complete pipeline.
        notes: what to heed when using it.
        licence: what the base's card states.
        benchmark: report of `mfd benchmark`.
    """
    stated = dict(licence or {})
    front = [
        "library_name: diffusers",
        f"pipeline_tag: text-to-{'video' if (config.get('architecture') or {}).get('frames') else 'image'}",
        _TAGS.replace("]", ", lora]" if adapter else "]"),
    ]
    if _hub_model(config):
        front += [f"base_model: {_hub_model(config)}", f"base_model_relation: {'adapter' if adapter else 'finetune'}"]
    front += [f"{name}: {_quoted(value)}" for name, value in stated.items()]
    holds = f"An adapter (LoRA) and a scheduler for {_base(config)}" if adapter else "A complete pipeline"
    files = "\n".join(f"- `{name}`, SHA-256 `{digest}`" for name, digest in sorted(digests.items()))
    return _assembled(
        ["\n".join(["---", *front, f"mfd_export: {content}", "---"]), *_introduction(config)],
        f"## Files\n\n{holds}, weights in {config['dtype']}:\n\n{files}\n\nChecked after writing, in a process with "
        f"diffusers alone: {check}.",
        f"## Use\n\nRun in this folder; mfd is not needed.\n\n```python\n{use}\n```",
        "\n".join(f"- {note}" for note in notes),
        *_ending(config, stated, benchmark),
    )


def onnx_card(
    config: Mapping[str, Any],
    content: str,
    digests: Mapping[str, str],
    check: str,
    use: str,
    *,
    inputs: Mapping[str, str],
    output: tuple[str, str],
    licence: Mapping[str, str] | None = None,
    benchmark: Mapping[str, Any] | None = None,
) -> str:
    """The README of an ONNX export.

    Args:
        config: the student's, as exported.
        content: what tells this export from others (`content_of` finds it again).
        digests: SHA-256 by file.
        check: what was found when it was checked.
        use: Python code that samples.
        inputs: what each of the graph's inputs is.
        output: name of its output, and what it is.
        licence: what the base's card states.
        benchmark: report of `mfd benchmark`.
    """
    stated = dict(licence or {})
    front = ["library_name: onnx", _TAGS, *(f"{name}: {_quoted(value)}" for name, value in stated.items())]
    files = "\n".join(f"- `{name}`, SHA-256 `{digest}`" for name, digest in sorted(digests.items()))
    steps, guidance = config["student"]["steps"], config["teacher"].get("guidance", 1.0)
    values = "\n".join(f"| `{name}` | {said} |" for name, said in [*inputs.items(), output])
    return _assembled(
        ["\n".join(["---", *front, f"mfd_export: {content}", "---"]), *_introduction(config)],
        f"## Files\n\nOne graph with {steps} step{'s'[: steps != 1]} inside, the teacher's guidance ({guidance:g}) "
        f"absorbed, weights in {config['dtype']}, computed in float32:\n\n{files}\n\nChecked after writing, in a "
        f"process with onnxruntime alone: {check}.",
        f"## Use\n\nRun in this folder; neither mfd nor PyTorch is needed.\n\n```python\n{use}\n```",
        f"The last row is the output; the batch is free.\n\n| Name | Meaning |\n| --- | --- |\n{values}",
        *_ending(config, stated, benchmark),
    )


def content_of(folder: Path) -> str | None:
    """What the card in a folder says that the folder holds (`pipeline_card`); None if no such card is there."""
    card = folder / CARD
    found = _CONTENT.search(card.read_text("utf-8", errors="replace")) if card.is_file() else None
    return found[1] if found else None


def pathless(value: Any) -> Any:
    """JSON data with absolute paths cut to their last part, so that a shared file does not tell where it was made."""
    if isinstance(value, Mapping):
        return {key: pathless(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [pathless(item) for item in value]
    if isinstance(value, str) and "\n" not in value:
        if PurePosixPath(value).is_absolute() or value.startswith("~/"):
            return PurePosixPath(value).name
        if PureWindowsPath(value).is_absolute():
            return PureWindowsPath(value).name
    return value


def _quoted(text: str) -> str:
    """A text as a YAML scalar, in quotes where it is more than a word or an address."""
    return text if _PLAIN.fullmatch(text) and not text.endswith(":") else json.dumps(text, ensure_ascii=False)


def _unmarked(text: str) -> str:
    return text.replace("`", "'")


def _assembled(opening: Sequence[str], *sections: str) -> str:
    return "\n\n".join(part for part in (*opening, *sections) if part) + "\n"


def _introduction(config: Mapping[str, Any]) -> list[str]:
    """Title, one paragraph, and what tells the teacher from others."""
    steps = config["student"]["steps"]
    identity = pathless(config.get("identity") or {})
    return [
        f"# {config['recipe']['name']}: a student that samples in {steps} {'step' if steps == 1 else 'steps'}",
        f"Distilled from a flow-matching teacher of the family `{config['teacher']['type']}` with the method "
        f"`{config.get('method')}`, {config.get('update')} updates"
        + (", averaged weights (EMA)" if config.get("ema") else "")
        + f". One sample costs {steps} unguided network evaluation{'s'[: steps != 1]}.",
        "## Teacher\n\n" + "\n".join(f"- {key}: `{value}`" for key, value in identity.items()) if identity else "",
    ]


def _ending(
    config: Mapping[str, Any], licence: Mapping[str, str], benchmark: Mapping[str, Any] | None
) -> tuple[str, str, str]:
    """Figures, recipe, licence."""
    import yaml

    recipe = yaml.safe_dump(pathless(config["recipe"]), sort_keys=False, allow_unicode=True)
    derived = "A distilled student is derived from its teacher's weights and data: their licences apply to it as well."
    state = "State the licence here before publishing."
    if licence:
        name = licence.get("license_name", licence.get("license", "a licence"))
        state = f"The base's card states `{_unmarked(name)}`."
    return _figures(benchmark), f"## Recipe\n\n```yaml\n{recipe}```", f"## Licence\n\n{derived} {state}"


def _hub_model(config: Mapping[str, Any]) -> str | None:
    """Hub name of the base; a folder has none, and no commit either."""
    identity = config.get("identity") or {}
    return identity.get("model") if identity.get("revision") else None


def _base(config: Mapping[str, Any]) -> str:
    hub = _hub_model(config)
    if hub:
        return f"[{hub}](https://huggingface.co/{hub}) at `{config['identity']['revision']}`"
    return f"`{pathless(config['teacher'].get('model'))}` (its hash is above)"


def _figures(benchmark: Mapping[str, Any] | None) -> str:
    """The card's table of `mfd benchmark`'s rows; empty without a report."""
    rows = (benchmark or {}).get("rows") or []
    if not rows:
        return ""
    metrics = list(dict.fromkeys(name for row in rows for name in row.get("metrics") or {}))
    names = ["model", "steps", "evaluations", "batch", "samples / s", *metrics]
    lines = [f"| {' | '.join(names)} |", f"| {' | '.join(['---'] * len(names))} |"]
    for row in rows:
        found = row.get("metrics") or {}
        cells = [row.get("model"), row.get("steps"), row.get("evaluations"), row.get("batch_size"), row.get("fps")]
        lines.append(f"| {' | '.join(_cell(cell) for cell in [*cells, *(found.get(name) for name in metrics)])} |")
    where = ", ".join(
        str(value) for value in ((benchmark or {}).get("device"), (benchmark or {}).get("dtype")) if value
    )
    return f"## Figures\n\nMeasured by `mfd benchmark`{f' ({where})' if where else ''}.\n\n" + "\n".join(lines)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
