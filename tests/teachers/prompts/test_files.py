"""Prompt files: each format, each kind of malformed line by its number, reading on demand, memory."""

import json
import time
import tracemalloc
import warnings

import numpy as np
import pytest

from teachers.errors import TeacherError
from teachers.prompts.files import PromptFile, text_digest


def written(folder, content, name="prompts.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def everything(file):
    return file.texts(range(len(file)))


@pytest.fixture(autouse=True)
def strict_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_text_has_a_prompt_a_line_and_blank_lines_are_skipped(tmp_path):
    file = PromptFile(written(tmp_path, "a fox\n\n  two\ttabbed words  \n \t \nüber den Wolken"))
    assert everything(file) == ["a fox", "two\ttabbed words", "über den Wolken"]
    assert file.texts([2, 0]) == ["über den Wolken", "a fox"]
    assert file.digests.shape == (3, 16)
    assert [digest.tobytes() for digest in file.digests] == [text_digest(text) for text in everything(file)]


def test_tsv_takes_the_second_field_even_where_outer_fields_are_empty(tmp_path):
    content = "1.jpg\ta fox\t6.5\tx\n\ta hen \t7\tx\n3.jpg\ta cat\t-1e0\t\n\n4.jpg\ta dog\t6\tx\ty\tz\n"
    assert everything(PromptFile(written(tmp_path, content, "laion.TSV"))) == ["a fox", "a hen", "a cat", "a dog"]


def test_a_header_is_left_out_and_reported(tmp_path):
    path = written(tmp_path, "URL\tTEXT\taesthetic\tid\n1.jpg\ta fox\t6.5\tx\n", "laion.tsv")
    with pytest.warns(UserWarning, match=r"laion\.tsv: line 1 is taken for a header: 'URL \| TEXT \| aesthetic"):
        file = PromptFile(path)
    assert everything(file) == ["a fox"]


def test_jsonl_takes_a_key(tmp_path):
    lines = [json.dumps({"prompt": "a fox\nasleep", "caption": "ü"}), "", json.dumps({"caption": "b", "prompt": " c "})]
    path = written(tmp_path, "\n".join(lines), "prompts.jsonl")
    assert everything(PromptFile(path)) == ["a fox\nasleep", "c"]
    assert everything(PromptFile(path, field="caption")) == ["ü", "b"]


def test_a_format_that_is_named_goes_before_the_suffix(tmp_path):
    path = written(tmp_path, '{"prompt": "a"}\n', "prompts.tsv")
    assert everything(PromptFile(path, "jsonl")) == ["a"]
    assert everything(PromptFile(path, "text")) == ['{"prompt": "a"}']


def test_byte_order_mark_and_crlf(tmp_path):
    assert everything(PromptFile(written(tmp_path, b"\xef\xbb\xbfa fox\r\n\r\na hen\r\n"))) == ["a fox", "a hen"]
    tsv = written(tmp_path, b"\xef\xbb\xbf1\ta fox\t6.5\t\r\n\r\n2\ta hen\t7\tx\r\n", "laion.tsv")
    assert everything(PromptFile(tsv)) == ["a fox", "a hen"]


MALFORMED = {
    "few fields": ("tsv", b"1\ta\t6", "too few fields (3 of at least 4)"),
    "no number": ("tsv", b"1\ta\tsix\tx", "third field 'six' is no number"),
    "no score": ("tsv", b"1\ta\t\tx", "third field '' is no number"),
    "empty tsv": ("tsv", b"1\t \t6\tx", "empty prompt"),
    "tabs": ("tsv", b"\t\t", "too few fields (3"),
    "encoding": ("text", b"caf\xe9 at night", "no UTF-8 (byte 4 of the line)"),
    "long": ("text", b"x" * 10_001, "a prompt of 10001 characters, more than 10000"),
    "endless": ("text", b"x" * 3_000_000, "longer than 1048576 bytes"),
    "no json": ("jsonl", b"a fox", "no JSON"),
    "deep": ("jsonl", b"[" * 100_000, "no JSON"),
    "no object": ("jsonl", b'["a"]', "JSON, but no object"),
    "no field": ("jsonl", b'{"text": "a"}', "no key 'prompt'"),
    "no text": ("jsonl", b'{"prompt": 3}', "'prompt' is no text"),
    "empty json": ("jsonl", b'{"prompt": " "}', "empty prompt"),
    "surrogate": ("jsonl", rb'{"prompt": "\ud800"}', "half of a surrogate pair"),
}
GOOD = {"tsv": b"1\ta fox\t6\tx", "text": b"a fox", "jsonl": b'{"prompt": "a fox"}'}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_line_is_refused_by_number_or_skipped_with_a_warning(tmp_path, kind):
    name, bad, reason = MALFORMED[kind]
    path = written(tmp_path, b"\n".join([GOOD[name], b"", bad, GOOD[name]]), f"prompts.{name}")
    with pytest.raises(TeacherError) as caught:
        PromptFile(path)
    assert f"{path}: 1 of 4 lines malformed: line 3: {reason}" in caught.value.found
    assert "data.malformed: skip" in caught.value.do and caught.value.allowed
    with pytest.warns(UserWarning, match="1 of 4 lines malformed: line 3: .* left out"):
        file = PromptFile(path, malformed="skip")
    assert everything(file) == ["a fox", "a fox"]


def test_five_malformed_lines_are_listed_and_all_are_counted(tmp_path):
    path = written(tmp_path, "1\ta\t6\tx\n" + "bad\n" * 7, "prompts.tsv")
    with pytest.raises(TeacherError, match=r"7 of 8 lines malformed: line 2: .*line 6: [^;]*; and 2 more") as caught:
        PromptFile(path)
    assert "line 7" not in caught.value.found


def test_only_the_first_line_can_be_a_header(tmp_path):
    path = written(tmp_path, "\nURL\tTEXT\tscore\tid\n1\ta\t6\tx\n", "prompts.tsv")
    with pytest.raises(TeacherError, match="line 2: third field 'score' is no number"):
        PromptFile(path)


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_a_file_without_prompts_is_refused(tmp_path, content):
    with pytest.raises(TeacherError, match="no prompts in"):
        PromptFile(written(tmp_path, content))


def test_no_prompt_is_left_when_all_lines_are_malformed(tmp_path):
    path = written(tmp_path, "bad\n", "prompts.tsv")
    with pytest.warns(UserWarning, match="1 of 1"), pytest.raises(TeacherError, match="no prompts in 1 lines"):
        PromptFile(path, malformed="skip")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(TeacherError, match=r"gone\.txt: no such file"):
        PromptFile(tmp_path / "gone.txt")
    with pytest.raises(TeacherError, match="is a folder"):
        PromptFile(tmp_path)


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path):
    path = written(tmp_path, "a fox\na hen\n")
    file = PromptFile(path)
    written(tmp_path, "a cat\na hen\n")
    assert file.texts([1]) == ["a hen"]
    with pytest.raises(TeacherError, match="has changed"):
        file.texts([0])


@pytest.mark.slow
def test_a_million_lines_take_a_few_seconds_and_little_memory(tmp_path):
    path = tmp_path / "laion.tsv"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(1_000_000):
            file.write(f"{number}.jpg\tpicture number {number} of a very long walk through the woods\t6.5\t0.01\n")
    begin = time.perf_counter()
    prompts = PromptFile(path)
    seconds = time.perf_counter() - begin
    print(f"{seconds:.1f} s for a million lines")
    assert seconds < 30
    assert prompts.texts([999_999]) == ["picture number 999999 of a very long walk through the woods"]
    assert len(np.unique(prompts.digests.view("S16"))) == 1_000_000
    tracemalloc.start()
    PromptFile(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{peak / 1e6:.0f} MB at most")
    assert peak < 60e6  # 24 MB are kept; arrays that grow need some more for a moment
