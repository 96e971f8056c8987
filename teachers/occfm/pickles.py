"""Pickles that hold data only, read without running anything: containers, strings, numbers, numpy arrays.

A pickle is a small program that may call whatever it names. Here a name is looked up in a short list and nowhere
else, and even the listed names do not lead to numpy: each leads to a stand-in below that checks its arguments and
only then makes an array. numpy's own functions trust what they are given; a type whose flags are forged turns bytes
of the file into an object's address.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from teachers.errors import TeacherError

_ALLOWED = "containers, strings, numbers and numpy arrays"
_TYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU][1-9][0-9]{0,8}")
_OBJECT = re.compile(r"O[48]")
_PLAIN = (str, bytes, bytearray, int, float, bool, type(None))


def read_pickle(path: Path) -> Any:
    """What a pickle of plain data holds; any protocol, written with numpy 1 or 2.

    An OrderedDict comes back as a dict. Arrays may be read-only. Arrays of objects are allowed if the objects are.

    Args:
        path: the file.

    Returns:
        Nested dicts, lists, tuples and sets of strings, numbers and arrays.

    Raises:
        TeacherError: the file is missing or damaged, or names anything but plain data; none of it has been run then.
    """
    try:
        with open(path, "rb") as file:
            return _Plain().plain(_Reader(file, path).load())
    except TeacherError:
        raise
    except FileNotFoundError as error:
        raise TeacherError(f"{path}: no such file", allowed="a pickle of data", do="check the path") from error
    except OSError as error:
        raise TeacherError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged pickle can fail in every way there is
        reason = str(error) or type(error).__name__
        raise TeacherError(
            f"{path}: not a readable pickle ({reason})", allowed=_ALLOWED, do="copy or download it again"
        ) from error


class _Reader(pickle.Unpickler):
    """An unpickler that knows the names in `_NAMES` and no others."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="latin1")  # strings of Python 2 are bytes; latin1 keeps each of them
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name; every name in a pickle comes through here."""
        try:
            return _NAMES[module, name]
        except KeyError:
            raise TeacherError(
                f"{self._path}: the pickle asks for {module}.{name}; it was not looked up and nothing was run",
                allowed=_ALLOWED,
                do="save the data as plain numpy arrays, or as npz; a file that asks for more than data may do harm",
            ) from None


class _Dtype:
    """Stands for numpy.dtype: numbers, booleans and strings of a fixed size, or objects."""

    def __init__(self, code: Any, *align_copy: Any) -> None:
        if not isinstance(code, str) or not (_TYPE.fullmatch(code) or _OBJECT.fullmatch(code)):
            raise ValueError(f"an array type {code!r}")
        self.holds_objects = bool(_OBJECT.fullmatch(code))
        self.value = np.dtype("O" if self.holds_objects else code)

    def __setstate__(self, state: Any) -> None:
        _, order, subarray, names, fields, *_ = state  # sizes and flags follow from the code: those given are not used
        if (subarray, names, fields) != (None, None, None) or order not in ("<", ">", "=", "|"):
            raise ValueError("an array type with fields")
        self.value = self.value.newbyteorder(order)


class _Array:
    """Stands for numpy.ndarray while a pickle is read; `value` is the array."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: str) -> None:
        """Makes the array from bytes, or from a list of objects."""
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
            raise ValueError("an array without a type or a shape")
        if dtype.holds_objects:
            self.value = _objects(content, shape, order)
            return
        if isinstance(content, str):
            content = content.encode("latin1")
        array = np.frombuffer(content, dtype.value) if content else np.empty(0, dtype.value)
        self.value = array.reshape(shape, order="F" if order == "F" else "C")


def _objects(content: Any, shape: tuple[int, ...], order: str) -> np.ndarray:
    if not isinstance(content, list):
        raise ValueError("an array of objects that is no list")
    array = np.empty(len(content), dtype=object)
    for position, item in enumerate(content):  # item by item, or numpy would look inside
        array[position] = item
    return array.reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(kind: Any, *empty: Any) -> _Array:
    if kind is not _Array:
        raise ValueError("an array of an unknown class")
    return _Array()  # its content comes by __setstate__


def _frombuffer(content: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> _Array:
    array = _Array()
    array.fill(content, dtype, shape, order)
    if order == "K" and axes is not None:
        array.value = array.value.transpose(axes)
    return array


def _scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, _Dtype) or dtype.holds_objects:
        raise ValueError("a number without a type")
    array = _Array()
    array.fill(content, dtype, (), "C")
    return array.value[()]


def _encode(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":  # how protocols below 3 write bytes
        raise ValueError(f"a string in encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""  # how protocols below 3 write bytes of length 0


class _Maker:
    """A function that a pickle can call but not change: of a plain one it could set the defaults."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a function with a state")


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _Maker(_encode),
    ("__builtin__", "bytes"): _Maker(_no_bytes),
    ("builtins", "bytes"): _Maker(_no_bytes),
}
for _core in ("numpy.core", "numpy._core"):  # the second from numpy 2 on
    for _part in ("multiarray", "numeric"):
        _NAMES[f"{_core}.{_part}", "_reconstruct"] = _Maker(_reconstruct)
        _NAMES[f"{_core}.{_part}", "scalar"] = _Maker(_scalar)
        _NAMES[f"{_core}.{_part}", "_frombuffer"] = _Maker(_frombuffer)


class _Plain:
    """Puts the arrays in the place of their stand-ins, and lets nothing through that is not plain data."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, Any]] = {}  # by id, with the original, so that no id is used twice

    def plain(self, value: Any) -> Any:
        """The value with its stand-ins replaced; lists and dicts are changed in place."""
        if type(value) in _PLAIN or isinstance(value, np.generic):
            return value
        if id(value) in self._done:
            return self._done[id(value)][1]
        if type(value) in (list, dict):
            self._done[id(value)] = (value, value)  # before its items: it may hold itself
            if type(value) is dict:
                for key in value:
                    self._simple(key)
            for key in range(len(value)) if type(value) is list else value:
                value[key] = self.plain(value[key])
            return value
        result = self._rebuilt(value)
        self._done[id(value)] = (value, result)
        return result

    def _rebuilt(self, value: Any) -> Any:
        if type(value) is tuple:
            return tuple(self.plain(item) for item in value)
        if type(value) in (set, frozenset):
            for item in value:
                self._simple(item)
            return value
        if type(value) is _Dtype:
            return value.value
        if type(value) is _Array:
            array = value.value
            for position in np.ndindex(array.shape) if array.dtype == object else ():
                array[position] = self.plain(array[position])
            return array
        raise ValueError(f"a {getattr(value, '__name__', type(value).__name__)} in place of data")

    def _simple(self, key: Any) -> None:
        """Refuses a key or set member that may hold a stand-in: these cannot be replaced in place."""
        if type(key) is tuple:
            for item in key:
                self._simple(item)
        elif type(key) not in _PLAIN and not isinstance(key, np.generic):
            raise ValueError(f"a {type(key).__name__} as a key")
