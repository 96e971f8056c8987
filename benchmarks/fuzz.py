"""Feeds mfd broken recipes and weight files, and expects one clear error or a result; never anything else.

    python benchmarks/fuzz.py [--count 10000] [--only recipes|weights] [--seed 0] [--keep FOLDER] [--json PATH]

`recipes` changes every shipped recipe: bytes, keys, values, structure, features of YAML, and --set texts beside it.
`weights` changes files that mfd reads: safetensors of teachers, students and checkpoints (headers, lengths, offsets,
types, shapes, metadata, cuts, flips), their manifests and states, records, indices of pipelines, prompt files, shards
of embeddings, image arrays, and the pickles of the one converter.

An example fails if it ends in anything but an `MfdError` or a result, takes more than a second of CPU time or more than
2 GB of memory, or leaves a file. A recipe that loads must load again from its own dump to the same. Every example is a
function of the seed and its number, so a failure is repeated with `--seed S --from NUMBER --count 1`; `--keep` stores
the input. Any failure ends the script with exit code 3.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fuzz_inputs import Target, recipe_targets
from fuzz_weights import weight_targets
from matplotlib.figure import Figure
from workbench import check_targets, deliver, options, run

from mfd_cli import console
from mfd_cli.errors import MfdError, RunStopped

LIMIT = 1.0  # seconds of CPU time
HANG = 60  # seconds of the wall's
MEMORY = 2 << 30  # bytes beyond what the process has

FAMILIES = {"recipes": recipe_targets, "weights": weight_targets}


@dataclass(frozen=True)
class Failure:
    """An example that went wrong.

    Attributes:
        target: what was read.
        number: of the example.
        what: what happened.
        detail: the last lines of the traceback, if there is one.
        input: the broken bytes.
    """

    target: str
    number: int
    what: str
    detail: str
    input: bytes


@dataclass
class Tally:
    """What came of the examples: refused ones and read ones by target, the slowest, and failures."""

    refused: Counter[str]
    read: Counter[str]
    slowest: float
    failures: list[Failure]


class Hang(BaseException):
    """An example that does not come to an end."""


def fuzz(family: str, count: int, *, seed: int = 0, first: int = 0) -> Tally:
    """Tries `count` examples of a family, in turn over its targets, in a folder of their own."""
    tally = Tally(Counter(), Counter(), 0.0, [])
    with tempfile.TemporaryDirectory() as home, _inside(home), _bounded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        targets = FAMILIES[family](Path(home))
        for target in targets:
            with contextlib.suppress(MfdError):  # from a --set text; imports and caches are no example's own time
                target.read(Random(0))
        before = _files(Path(home))
        for number in range(first, first + count):
            target = targets[number % len(targets)]
            random = Random(f"{seed}/{family}/{number}")
            broken = target.broken(random)
            target.path.write_bytes(broken)
            failure = _tried(tally, target, random, number, broken)
            target.path.write_bytes(target.content)
            after = _files(Path(home))
            if failure is None and after != before:
                failure = Failure(target.name, number, f"left {sorted(after ^ before)}", "", broken)
                before = after
            if failure is not None:
                tally.failures.append(failure)
    return tally


def _tried(tally: Tally, target: Target, random: Random, number: int, broken: bytes) -> Failure | None:
    began = time.process_time()
    what = detail = ""
    try:
        with _no_longer_than(HANG):
            target.read(random)
        tally.read[target.name] += 1
    except MfdError as error:
        tally.refused[target.name] += 1
        if not error.found:
            what = "an error that says nothing"
    except (Exception, Hang) as error:
        what = f"{type(error).__name__}: {str(error)[:200]}"
        detail = "".join(traceback.format_tb(error.__traceback__)[-3:])
    spent = time.process_time() - began
    tally.slowest = max(tally.slowest, spent)
    if not what and spent > LIMIT:
        what = f"took {spent:.1f} s"
    return Failure(target.name, number, what, detail, broken) if what else None


def _files(home: Path) -> frozenset[str]:
    return frozenset(str(path.relative_to(home)) for path in home.rglob("*"))


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    """Makes a folder the working folder."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Bounds the memory that this process may come to use, where the system can."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def _no_longer_than(seconds: int) -> Iterator[None]:
    def over(*about: Any) -> None:
        raise Hang(f"more than {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    previous = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Tries, prints and writes; returns the report.

    Raises:
        RunStopped: an example failed.
    """
    parser = options(__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="examples of each family (default: 10000)")
    parser.add_argument("--only", choices=FAMILIES, help="one family alone")
    parser.add_argument("--seed", type=int, default=0, help="seed of the examples (default: 0)")
    parser.add_argument("--from", dest="first", type=int, default=0, help="number of the first example")
    parser.add_argument("--keep", type=Path, help="folder for inputs that failed")
    args = parser.parse_args(arguments)
    check_targets(args)
    found = {
        family: fuzz(family, 100 if args.quick else args.count, seed=args.seed, first=args.first)
        for family in ([args.only] if args.only else FAMILIES)
    }
    failures = [failure for tally in found.values() for failure in tally.failures]
    _print(found, failures, args.keep)
    report = {
        "schema": 1, "seed": args.seed,
        "families": {
            family: {"refused": dict(tally.refused), "read": dict(tally.read), "slowest_seconds": tally.slowest,
                     "failures": [f"{one.target} {one.number}: {one.what}" for one in tally.failures]}
            for family, tally in found.items()
        },
    }  # fmt: skip
    deliver(report, args, lambda figure: _draw(figure, report))
    if failures:
        raise RunStopped(f"{len(failures)} examples failed, the first: {failures[0].what}")
    return report


def _print(found: dict[str, Tally], failures: Sequence[Failure], keep: Path | None) -> None:
    for family, tally in found.items():
        names = sorted(tally.refused.keys() | tally.read.keys())
        console.table(
            f"{family}: {sum(tally.refused.values())} refused, {sum(tally.read.values())} read, "
            f"{len(tally.failures)} failed; the slowest took {tally.slowest:.2f} s",
            ["target", "refused", "read"],
            [[name, tally.refused[name], tally.read[name]] for name in names],
        )
    for failure in failures[:20]:
        console.err.print(f"{failure.target} {failure.number}: {failure.what}\n{failure.detail}")
    if keep is not None and failures:
        keep.mkdir(parents=True, exist_ok=True)
        for failure in failures:
            (keep / f"{failure.target.replace(' ', '-')}-{failure.number}").write_bytes(failure.input)


def _draw(figure: Figure, report: dict[str, Any]) -> None:
    axes = figure.subplots()
    for name, family in report["families"].items():
        for outcome in ("refused", "read"):
            axes.bar(f"{name}, {outcome}", sum(family[outcome].values()))
    axes.set_ylabel("examples")


if __name__ == "__main__":
    sys.setrecursionlimit(1000)  # Python's default, whatever a library has made of it
    run(main)
