"""Published pickles become safetensors with their names kept, and nothing in them is run."""

import json
import pickle

import pytest
import torch
from safetensors import safe_open

from mfd_cli.commands.metrics import convert as command
from mfd_cli.errors import MfdError
from mfd_cli.metrics.convert import convert

FILES = {
    "fid": {"Conv2d_1a_3x3.conv.weight": torch.arange(3.0)},
    "aesthetic": {"layers.0.weight": torch.arange(3.0)},
    "hpsv2": {
        "state_dict": {"visual.conv1.weight": torch.arange(3.0), "attn_mask": torch.tensor(-torch.inf)},
        "epoch": 4,
    },
    "image-reward": {"mlp.layers.0.weight": torch.arange(3.0)},
}


@pytest.mark.parametrize("metric", FILES)
def test_tensors_keep_their_names_and_values(metric, tmp_path):
    source, target = tmp_path / "published.pt", tmp_path / "out.safetensors"
    torch.save(FILES[metric], source)
    facts = convert(metric, source, target)
    with safe_open(target, "pt") as file:
        (name,) = file.keys()
        assert file.get_tensor(name).tolist() == [0, 1, 2] and "attn_mask" not in name
        header = json.loads(file.metadata()["mfd"])
    assert header == {name: facts[name] for name in header} and header["type"] == metric
    assert header["source_name"] == "published.pt" and len(header["source_sha256"]) == 64 and facts["tensors"] == 1


class Harmful:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("metric", "content", "message"),
    [
        ("vgg", {}, "no converter for 'vgg'"),
        ("fid", {"layers.0.weight": torch.zeros(1)}, "not the weights of fid"),
        ("fid", [torch.zeros(1)], "not the weights of fid"),
        ("aesthetic", {"layers.0.weight": torch.tensor(torch.nan)}, "NaN"),
    ],
)
def test_other_content_is_refused(metric, content, message, tmp_path):
    source = tmp_path / "published.pt"
    torch.save(content, source)
    with pytest.raises(MfdError, match=message):
        convert(metric, source, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_pickle_that_asks_for_more_than_data_is_not_run(tmp_path, capsys):
    source = tmp_path / "published.pt"
    source.write_bytes(pickle.dumps({"layers.0.weight": Harmful()}))
    with pytest.raises(MfdError, match="nothing in it was run"):
        convert("aesthetic", source, tmp_path / "out.safetensors")
    assert capsys.readouterr().out == ""


def test_a_file_is_replaced_only_when_asked(tmp_path, capsys):
    source = tmp_path / "published.pt"
    torch.save(FILES["fid"], source)
    assert command("fid", source) == tmp_path / "published.safetensors"
    assert capsys.readouterr().out.strip() == str(tmp_path / "published.safetensors")
    with pytest.raises(MfdError, match="exists"):
        command("fid", source)
    command("fid", source, force=True)
    with pytest.raises(MfdError, match="no such file"):
        command("fid", tmp_path / "nothing.pt")
    with pytest.raises(MfdError) as caught:
        convert("fid", source, tmp_path / "out.pt")
    assert "safetensors" in caught.value.allowed
