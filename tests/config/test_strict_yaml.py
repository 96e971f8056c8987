from __future__ import annotations

import math
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfd_cli.config.strict_yaml import OddScalar, dotted, dump, parse, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("1E3", 1e3),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0.25", -0.25),
        ("0", 0),
        ("-7", -7),
        ("+3", 3),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0.0", 0.0),
        ("0e5", 0.0),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("1e", "1e"),
        ("a_1", "a_1"),
        ("v1:2x", "v1:2x"),
        ("=", "="),
    ],
)
def test_a_scalar_is_read_as_yaml_1_2_reads_it(text: str, value: object) -> None:
    read = scalar(text)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "010",
        "-007",
        "00.5",
        "0o17",
        "1_000",
        "1_0.5",
        "0.1_5",
        "12:30",
        "1:2:3.5",
        "0x1F",
        "0b11",
        ".inf",
        "-.Inf",
        ".nan",
        ".NaN",
        "1e400",
        "1e-400",
        "9" * 5000,
    ],
)
def test_an_odd_scalar_is_refused_with_the_way_to_write_it(text: str) -> None:
    with pytest.raises(OddScalar) as caught:
        scalar(text)
    assert len(str(caught.value)) < 200
    assert parse(f"a: {text}", "f").mistakes[0].key == "a"
    assert parse(f"a: '{text}'", "f").data == {"a": text}


def test_every_key_and_item_has_its_line() -> None:
    document = parse("a: 1\nb:\n  c: [1, {d: 2}]\n", "f.yaml")
    assert document.mistakes == []
    assert document.data == {"a": 1, "b": {"c": [1, {"d": 2}]}}
    assert document.positions[("a",)] == "f.yaml:1"
    assert document.positions[("b", "c")] == document.positions[("b", "c", 1, "d")] == "f.yaml:3"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\na: 2\n", 2, "written twice, first in line 1"),
        ("a:\n  b: 1\n\n  b: 2\n", 4, "first in line 2"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "tag '!!python/object/apply:os.system'"),
        ("a: !!str 1\n", 1, "tag '!!str'"),
        ("a: ! x\n", 1, "tag '!'"),
        ("a: 1\nb: &x 1\n", 2, "anchor '&x'"),
        ("a: *x\n", 1, "alias '*x'"),
        ("<<: {a: 1}\n", 1, "merge key"),
        ("a: 1\n\tb: 2\n", 2, "tab"),
        ("1: 2\n", 1, "'1' as a key"),
        ("null: 2\n", 1, "'null' as a key"),
        ("? [a, b]\n: 2\n", 1, "a list or block as a key"),
        ("a: b: c\n", 1, "a ':'"),
        ("a: [1, 2\n", 2, "not YAML"),
        ("a: 1\n---\nb: 2\n", 2, "not YAML"),
        ("a: 1\nb: \x07\n", 2, "U+0007"),
        ('a: "\\ud800"\n', 1, "surrogate"),
        ('a: 1\nb: [x, "c\\0d"]\n', 2, "NUL"),
        ("a: @b\n", 1, "not YAML"),
    ],
)
def test_what_is_more_than_plain_data_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    mistakes = parse(text, "f.yaml").mistakes
    assert len(mistakes) == 1
    assert mistakes[0].where == f"f.yaml:{line}"
    assert words in str(mistakes[0])


def test_hostile_texts_are_refused_at_once() -> None:
    started = time.monotonic()
    deep = parse("a: " + "[" * 100_000, "f").mistakes
    laughs = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    assert "levels" in str(deep[0])
    assert len(parse(laughs, "f").mistakes) > 20
    assert time.monotonic() - started < 5


def test_dotted_writes_items_with_brackets() -> None:
    assert dotted(("optim", "betas", 0, "x")) == "optim.betas[0].x"


_texts = st.text(string.printable + "äß\u2028\x85\ufeff😀", max_size=20) | st.sampled_from(
    [
        "on",
        "1e-4",
        "010",
        "1_000",
        "12:30",
        "null",
        "",
        " a",
        "a: b",
        "#x",
        "<<",
        "-",
        "!x",
        "&x",
        "*x",
        "'",
        '"',
        "a\nb",
    ]
)
_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts
)
_data = st.dictionaries(
    _texts,
    st.recursive(
        _leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3), max_leaves=8
    ),
    max_size=4,
)


@given(_data)
def test_dump_is_read_back_to_the_same_data(data: dict[str, object]) -> None:
    document = parse(dump(data), "f")
    assert document.mistakes == []
    assert document.data == data


def test_dump_keeps_every_digit_and_type() -> None:
    for number in (1e-4, 1e-8, 1e16, 5e-324, 1.7976931348623157e308, math.pi, 1.0, -0.0):
        read = parse(dump({"a": number}), "f").data["a"]
        assert read == number and isinstance(read, float)
