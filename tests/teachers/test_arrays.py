"""Every way in which an .npz file cannot be read is one kind of error."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from teachers.arrays import read_arrays


def stored(path: Path, method: int | None = None, flags: int = 0) -> Path:
    """An .npz whose entry says that it is packed by a method, or has flags, that are not true."""
    held = io.BytesIO()
    np.savez_compressed(held, mu=np.arange(6.0))
    data = bytearray(held.getvalue())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # local and central header: flags, then method
        place = data.index(mark) + at
        data[place] |= flags
        if method is not None:
            data[place + 2 : place + 4] = method.to_bytes(2, "little")
    path.write_bytes(data)
    return path


def test_arrays_come_in_the_order_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", one=np.arange(3), two=np.ones((2, 2)))
    two, one = read_arrays(tmp_path / "a.npz", "two", "one")
    assert two.shape == (2, 2) and one.tolist() == [0, 1, 2]
    assert read_arrays(stored(tmp_path / "b.npz"), "mu")[0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("method", [1, 6, 12, 14, 97])
def test_an_unknown_or_wrong_packing_is_an_error_with_words(method: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_arrays(stored(tmp_path / "a.npz", method), "mu")


def test_an_encrypted_file_is_an_error_with_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="encrypted"):
        read_arrays(stored(tmp_path / "a.npz", flags=1), "mu")


def test_what_is_missing_or_no_archive_or_a_pickle_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", one=np.arange(3))
    np.save(tmp_path / "b.npy", np.arange(3))
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez(tmp_path / "d.npz", one=np.array([{}], dtype=object))
    assert zipfile.is_zipfile(tmp_path / "d.npz")
    for name in ("a.npz", "b.npy", "c.npz", "gone.npz"):
        with pytest.raises(ValueError, match=r"\w"):
            read_arrays(tmp_path / name, "two")
    with pytest.raises(ValueError, match="pickle"):
        read_arrays(tmp_path / "d.npz", "one")
