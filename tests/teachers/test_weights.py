"""Weights that are read from files; damaged files are those of tests/store/test_tensors.py."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from teachers.errors import MfdError
from teachers.weights import read_tensors


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e8m0fnu])
def test_floats_of_fewer_bits_are_refused(kind: torch.dtype, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2), "b": torch.ones(4).to(kind)}, tmp_path / "small.safetensors")
    with pytest.raises(MfdError, match="b is of type float8_e") as caught:
        read_tensors(tmp_path / "small.safetensors")
    assert "16, 32 or 64 bits" in str(caught.value.allowed)
