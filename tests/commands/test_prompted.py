"""`mfd sample` and `mfd benchmark` on students that are asked with text."""

from pathlib import Path

import pytest
from PIL import Image

from mfd_cli.commands.benchmark import benchmark
from mfd_cli.commands.sample import sample
from mfd_cli.errors import MfdError
from mfd_cli.training.run import distill


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one update on prompts of its own."""
    folder = tmp_path_factory.mktemp("prompted")
    (folder / "mine.txt").write_text("a fox\na boat\na red house\n")
    few = ["train.updates=1", "train.batch_size=2", "method.aux_updates=1", "log.preview_num=1", "teacher.steps=2",
           f"data.path={folder / 'mine.txt'}"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return distill("sana-tiny", output=folder / "run", overrides=few).root


def test_a_folder_gets_one_png_a_prompt(run, tmp_path):
    sample(str(run), prompt=["a fox", "a boat"], teacher=True, output=tmp_path / "pictures")
    for model in ("teacher", "student"):
        files = sorted((tmp_path / "pictures" / model).glob("*.png"))
        assert [file.name for file in files] == ["000000.png", "000001.png"]
        assert all(Image.open(file).size == (64, 64) for file in files)


def test_a_prompt_file_is_one_captioned_grid(run, tmp_path):
    prompts = tmp_path / "asked.txt"
    prompts.write_text("a fox\n\na very long prompt about a boat on a lake\nx\n")
    plain, captioned = tmp_path / "plain.png", tmp_path / "captioned.png"
    sample(str(run), prompts=prompts, output=captioned)
    sample(str(run), prompt=["x", "x", "x"], output=plain)
    assert Image.open(captioned).height > Image.open(plain).height  # room for longer captions


def test_prompts_repeat_until_there_are_enough(run, tmp_path):
    sample(str(run), prompt=["a fox"], num=3, output=tmp_path / "three")
    pictures = [(tmp_path / "three" / f"00000{index}.png").read_bytes() for index in range(3)]
    assert len(set(pictures)) == 3  # one prompt, three noises


def test_labels_are_refused(run):
    with pytest.raises(MfdError, match="takes no labels"):
        sample(str(run), label=[1])


def test_speed_needs_no_prompt_file(run, tmp_path):
    file = run.parent / "mine.txt"
    aside = file.rename(tmp_path / "mine.txt")
    try:
        report = benchmark(str(run), fps=True)
        assert any("stand-in" in note for note in report["notes"])
        assert [row["evaluations"] for row in report["rows"]] == [2, 4, 1] and all(
            row["fps"] > 0 for row in report["rows"]
        )
        with pytest.raises(MfdError, match="no such file"):
            benchmark(str(run), quality=True)
    finally:
        Path(aside).rename(file)
