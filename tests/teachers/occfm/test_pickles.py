"""Pickles of data: read exactly, whatever the protocol; anything more is refused before it can run."""

import collections
import io
import os
import pathlib
import pickle
import random
import struct

import numpy as np
import pytest

from teachers.errors import TeacherError
from teachers.occfm.pickles import read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "column order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "turned": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
    "a part": np.arange(16.0).reshape(4, 4)[::2, 1:],
    "uint8": np.arange(4, dtype=np.uint8),
    "other byte order": np.arange(3, dtype=">f4"),
    "bool": np.array([True, False]),
    "strings": np.array(["car", "pedestrian"]),
    "bytes": np.array([b"a", b"bc"]),
    "empty": np.zeros((0, 9), dtype=np.float32),
    "no axes": np.array(3.5),
    "objects": np.array([[1, "a"], [None, [np.float32(2)]]], dtype=object),
}


def written(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def refusal(path):
    with pytest.raises(TeacherError) as caught:
        read_pickle(path)
    assert str(path) in caught.value.found
    return caught.value


class Calls:
    """Asks the unpickler to call a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_as_they_were(tmp_path, name, protocol):
    array = read_pickle(written(tmp_path / "a.pkl", ARRAYS[name], protocol))
    assert type(array) is np.ndarray and array.dtype == ARRAYS[name].dtype and array.shape == ARRAYS[name].shape
    assert np.array_equal(array, ARRAYS[name])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_strings_and_numbers_come_back_as_they_were(tmp_path, protocol):
    shared = np.arange(3)
    value = {
        "list": [1, 2.5, True, None, "ä", b"\xff\x00", b"", 1 << 80],
        "tuple": (np.float32(0.1), np.int64(-3), np.bool_(True), np.str_("s"), ("inner", shared)),
        "ordered": collections.OrderedDict([("b", shared), ("a", np.dtype(">f4"))]),
        (1, "key"): [],
        np.int64(4): {},
    }
    back = read_pickle(written(tmp_path / "a.pkl", value, protocol))
    assert back["list"] == value["list"] and back["tuple"][:4] == value["tuple"][:4]
    assert [type(item) for item in back["tuple"][:4]] == [np.float32, np.int64, np.bool_, np.str_]
    assert list(back["ordered"]) == ["b", "a"] and back["ordered"]["a"] == np.dtype(">f4")
    assert back["tuple"][4][1] is back["ordered"]["b"] and back["ordered"]["b"].tolist() == [0, 1, 2]
    assert back[1, "key"] == [] and back[4] == {}


def test_sets_of_recent_protocols_and_a_list_that_holds_itself(tmp_path):
    loop = [{1, 2}, frozenset("ab")]
    loop.append(loop)
    back = read_pickle(written(tmp_path / "a.pkl", loop))
    assert back[:2] == [{1, 2}, frozenset("ab")] and back[2] is back


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_both_names_that_numpy_gave_its_module_are_read(tmp_path, module):
    content = pickle.dumps(ARRAYS["float32"], protocol=2)
    own = next(name for name in (b"numpy._core.multiarray", b"numpy.core.multiarray") if name in content)
    (tmp_path / "a.pkl").write_bytes(content.replace(own, module))
    assert np.array_equal(read_pickle(tmp_path / "a.pkl"), ARRAYS["float32"])


def test_strings_of_python_2_are_read(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02U\x03a\xe4bq\x00.")
    assert read_pickle(tmp_path / "a.pkl") == "aäb"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "system"), (eval, "eval"), (getattr, "getattr"), (io.open, "open"), (pathlib.Path, "Path")],
)
def test_a_name_that_is_no_data_is_refused_and_nothing_runs(tmp_path, protocol, function, name):
    marker = tmp_path / "ran"
    asked = Calls(os.system, f"touch {marker}") if function is os.system else Calls(function, f"{marker}", "w")
    error = refusal(written(tmp_path / "a.pkl", [np.ones(2), asked], protocol))
    assert f".{name}" in error.found and "nothing was run" in error.found and "npz" in error.do
    assert not marker.exists()


@pytest.mark.parametrize("value", [np.rec.array([1.0]), np.ma.array([1.0]), 1j, np.random.default_rng(0)])
def test_classes_other_than_plain_arrays_are_refused(tmp_path, value):
    assert "nothing was run" in refusal(written(tmp_path / "a.pkl", value)).found


@pytest.mark.parametrize(
    "value", [np.zeros(2, dtype=[("a", "f4")]), np.array(["2020-01-01"], dtype="M8[D]"), np.dtype("V8")]
)
def test_types_other_than_numbers_and_strings_are_refused(tmp_path, value):
    assert "array type" in refusal(written(tmp_path / "a.pkl", value)).found


def test_an_object_inside_an_array_gets_no_further_than_outside(tmp_path):
    marker = tmp_path / "ran"
    array = np.array([Calls(os.system, f"touch {marker}")], dtype=object)
    assert ".system" in refusal(written(tmp_path / "a.pkl", array)).found
    assert not marker.exists()


def program(*parts):
    """A pickle of protocol 2 from opcodes."""
    return b"\x80\x02" + b"".join(parts) + b"."


_BYTES = b"c_codecs\nencode\nX\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1\x86R"
_OBJECTS = (  # with flags that say: no objects
    b"cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R"
    b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)
_EMPTY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85K\x00\x87R"
_SET_DEFAULTS = b"N}X\x0c\x00\x00\x00__defaults__K\x05\x85s\x86b"


@pytest.mark.parametrize(
    "content",
    [
        program(_EMPTY, b"(K\x01K\x01\x85", _OBJECTS, b"\x89", _BYTES, b"tb"),  # bytes as an object's address
        program(b"cnumpy.core.multiarray\nscalar\n", _OBJECTS, _BYTES, b"\x86R"),
        program(b"cnumpy.core.numeric\n_frombuffer\n(", _BYTES, _OBJECTS, b"K\x01\x85X\x01\x00\x00\x00CtR"),
        program(b"cnumpy.core.numeric\n_frombuffer\n", _SET_DEFAULTS),  # would change later reads
        program(b"cnumpy\nndarray\n"),  # a class itself
        program(b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R"),  # memory on demand
        program(_EMPTY),  # an array that never gets its content
        program(b"}", _EMPTY, b"K\x01s"),  # an array as a key
        program(b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R"),
        program(b"Pname\n"),  # an object kept elsewhere
        program(b"\x82\x01"),  # an extension
    ],
)
def test_forged_pickles_are_refused(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    refusal(tmp_path / "a.pkl")
    assert np.array_equal(read_pickle(written(tmp_path / "b.pkl", ARRAYS["turned"], 5)), ARRAYS["turned"])


@pytest.mark.parametrize("content", [b"", b"\x80", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04" * 9])
def test_files_that_are_no_pickles_are_refused(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    assert "not a readable pickle" in refusal(tmp_path / "a.pkl").found


def test_missing_files_and_folders_are_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.pkl").found
    assert "cannot be read" in refusal(tmp_path).found


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_truncation_is_refused(tmp_path, protocol):
    content = pickle.dumps([{"x": ARRAYS["float32"], "path": [["a/b"]]}], protocol=protocol)
    for length in range(len(content)):
        (tmp_path / "a.pkl").write_bytes(content[:length])
        refusal(tmp_path / "a.pkl")


def test_changed_bytes_never_give_more_than_a_refusal_or_data(tmp_path):
    content = pickle.dumps([{"x": ARRAYS["float32"], "n": np.float32(1), "path": [["a/b"]]}], protocol=4)
    dice, refused = random.Random(0), 0
    for _ in range(1500):
        changed = bytearray(content)
        for _ in range(dice.choice((1, 1, 3))):
            # not r: Python takes memory for as many names as the four bytes after it say
            changed[dice.randrange(len(changed))] = dice.choice([byte for byte in range(256) if byte != ord("r")])
        (tmp_path / "a.pkl").write_bytes(changed)
        try:
            read_pickle(tmp_path / "a.pkl")
        except TeacherError:
            refused += 1
    assert refused > 500


def test_a_nesting_deeper_than_any_data_is_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + b"]" * 20000 + b"a" * 19999 + b".")
    refusal(tmp_path / "a.pkl")


def test_a_length_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 46) + b"abc.")
    refusal(tmp_path / "a.pkl")
