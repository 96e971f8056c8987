"""Broken recipes and weight files end in one clear error or a result; and the fuzzer sees what does not."""

import json
from random import Random

import pytest

from mfd_cli.errors import MfdError, RunStopped


@pytest.mark.parametrize(("family", "count"), [("recipes", 150), ("weights", 150)])
def test_no_broken_file_gives_anything_but_an_error_or_a_result(script, family, count):
    tally = script("fuzz").fuzz(family, count, seed=7)
    assert not tally.failures
    assert sum(tally.refused.values()) + sum(tally.read.values()) == count
    assert sum(tally.refused.values()) > count / 3


def test_every_target_is_readable_as_long_as_it_is_whole(script, tmp_path, monkeypatch):
    fuzz = script("fuzz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fuzz_inputs.overrides", lambda random: [])
    for name, targets in fuzz.FAMILIES.items():
        home = tmp_path / name
        home.mkdir()
        monkeypatch.chdir(home)
        for target in targets(home):
            target.path.write_bytes(target.content)
            target.read(Random(0))


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (lambda path: 1 / 0, "ZeroDivisionError"),
        (lambda path: path.with_name("new").touch(), "left"),
        (lambda path: (_ for _ in ()).throw(MfdError("")), "an error that says nothing"),
        (lambda path: bytearray(64 << 30), "MemoryError"),
        (lambda path: None, None),
    ],
)
def test_what_must_not_happen_is_seen(read, what, script, monkeypatch):
    fuzz, inputs = script("fuzz"), script("fuzz_inputs")

    def targets(home):
        path = home / "file"
        path.write_bytes(b"content")
        calls = []

        def counted(random):
            calls.append(1)
            return read(path) if len(calls) > 1 else None  # the first time it is whole

        return [inputs.Target("file", path, b"content", (inputs.bytes_changed,), counted)]

    monkeypatch.setitem(fuzz.FAMILIES, "weights", targets)
    failures = fuzz.fuzz("weights", 1).failures
    assert [failure.what.startswith(what) for failure in failures] == ([True] if what else [])


def test_a_failure_is_exit_3_and_keeps_its_input(script, tmp_path, monkeypatch):
    fuzz = script("fuzz")
    failure = fuzz.Failure("a file", 3, "oh", "", b"broken")
    monkeypatch.setattr(fuzz, "fuzz", lambda *_, **__: fuzz.Tally(fuzz.Counter(), fuzz.Counter(), 0.1, [failure]))
    with pytest.raises(RunStopped, match="1 examples failed, the first: oh"):
        fuzz.main(["--only", "weights", "--keep", str(tmp_path / "kept"), "--json", str(tmp_path / "x.json")])
    assert (tmp_path / "kept" / "a-file-3").read_bytes() == b"broken"
    assert json.loads((tmp_path / "x.json").read_text())["families"]["weights"]["failures"] == ["a file 3: oh"]
