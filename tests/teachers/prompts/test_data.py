"""Prompts as data: each is encoded once, runs that stop are resumed, processes share the work."""

import hashlib
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from teachers.errors import TeacherError
from teachers.gmm import GaussianMixtureTeacher
from teachers.prompts import data as module
from teachers.prompts.contract import PromptTeacher
from teachers.prompts.data import PromptData, PromptDataSettings
from teachers.registry import data as data_registry
from teachers.settings import TeacherSettings


def row_of(text):
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    length = len(text.split())
    return {"text": torch.randn(length, 3, generator=torch.Generator().manual_seed(seed)).bfloat16()}


class HashTeacher(PromptTeacher):
    """Rows follow from the text alone; every text that was encoded is noted, batch by batch."""

    def __init__(self, revision="1", stop_after=None):
        super().__init__(TeacherSettings(type="hash"), {})
        self.revision, self.batches, self.released, self.stop_after = revision, [], 0, stop_after

    @property
    def encoded(self):
        return [text for batch in self.batches for text in batch]

    @classmethod
    def load(cls, settings):
        return cls()

    @property
    def sample_shape(self):
        return (2,)

    def build_network(self):
        return nn.Identity()

    def identity(self):
        return {}

    def encode_rows(self, texts):
        if self.stop_after is not None and len(self.encoded) >= self.stop_after:
            raise KeyboardInterrupt
        self.batches.append(list(texts))
        return [row_of(text) for text in texts]

    def collate(self, rows):
        return {
            "text": nn.utils.rnn.pad_sequence([row["text"] for row in rows], batch_first=True),
            "length": torch.tensor([len(row["text"]) for row in rows]),
        }

    def encoding(self):
        return {"encoder": "hash", "revision": self.revision}

    def own_texts(self):
        return ["a negative prompt"]

    def release_encoder(self):
        self.released += 1


TEXTS = [f"prompt {number} " + "and more " * (number % 4) + "words" for number in range(60)]
EXAMPLES = HashTeacher().examples(8)
KEPT = ["a negative prompt", *EXAMPLES]  # what the teacher is asked beside the file


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join([*TEXTS, TEXTS[5], TEXTS[0]]) + "\n", "utf-8")
    return path


@pytest.fixture
def source(tmp_path, prompts):
    def build(teacher, **settings):
        known = {"type": "prompts", "path": str(prompts), "cache": str(tmp_path / "cache"), "encode_batch": 4}
        return PromptData.load(PromptDataSettings(**(known | settings)), teacher)

    return build


def quiet(done, total):
    pass


def expected(teacher, texts):
    return teacher.collate([row_of(text) for text in texts])


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_registry_knows_it():
    assert data_registry.get("prompts") is PromptData


def test_each_prompt_is_encoded_once_then_the_encoder_goes(source):
    teacher = HashTeacher()
    data = source(teacher)
    assert data.size == 62
    told = []
    data.prepare(lambda done, total: told.append((done, total)))
    assert sorted(teacher.encoded) == sorted(TEXTS + KEPT)
    assert teacher.released == 1
    assert told[0] == (0, 60) and told[-1] == (60, 60) and told == sorted(told)
    items = torch.tensor([61, 3, 60, 17])
    condition = data.condition(items)
    assert same(condition, expected(teacher, [TEXTS[0], TEXTS[3], TEXTS[5], TEXTS[17]]))
    assert condition["text"].dtype == torch.bfloat16
    assert same(teacher.encode(KEPT[:2]), expected(teacher, KEPT[:2]))
    assert len(teacher.encoded) == 60 + 9, "after preparation nothing is encoded"


def test_batches_keep_to_their_size_and_put_similar_lengths_together(source):
    teacher = HashTeacher()
    source(teacher).prepare(quiet)
    assert [len(batch) for batch in teacher.batches] == [4, 4, 1] + [4] * 15
    batches = teacher.batches[3:]  # before them comes what the teacher keeps
    lengths = [len(text) for batch in batches for text in batch]
    assert lengths == sorted(lengths)


def test_a_second_run_encodes_nothing(source):
    source(HashTeacher()).prepare(quiet)
    teacher = HashTeacher()
    data = source(teacher)
    told = []
    data.prepare(lambda done, total: told.append((done, total)))
    assert told == [(60, 60)]
    assert same(data.condition(torch.arange(60)), expected(teacher, TEXTS))
    assert same(teacher.encode(KEPT), expected(teacher, KEPT))
    assert teacher.batches == []


def test_a_run_that_was_stopped_goes_on_where_it_was(source, monkeypatch):
    monkeypatch.setattr(module, "_SHARD_ROWS", 8)
    first = HashTeacher(stop_after=9 + 28)
    with pytest.raises(KeyboardInterrupt):
        source(first).prepare(quiet)
    second = HashTeacher()
    told = []
    source(second).prepare(lambda done, total: told.append(done))
    assert told[0] == 24, "three shards of eight were whole, half of the fourth is lost"
    assert len(second.encoded) == 60 - 24
    assert set(first.encoded) | set(second.encoded) == set(TEXTS + KEPT)


def test_a_big_shard_is_written_early(source, monkeypatch):
    monkeypatch.setattr(module, "_SHARD_BYTES", 1)
    with pytest.raises(KeyboardInterrupt):
        source(HashTeacher(stop_after=9 + 12)).prepare(quiet)
    second = HashTeacher()
    source(second).prepare(quiet)
    assert len(second.encoded) == 60 - 12


def test_another_encoding_is_encoded_anew(source):
    source(HashTeacher()).prepare(quiet)
    other = HashTeacher(revision="2")
    source(other).prepare(quiet)
    assert len(other.encoded) == 60 + 9


def test_a_file_that_grew_costs_only_what_is_new(source, prompts):
    source(HashTeacher()).prepare(quiet)
    prompts.write_text("a new first line\n" + prompts.read_text("utf-8"), "utf-8")
    teacher = HashTeacher()
    data = source(teacher)
    data.prepare(quiet)
    assert teacher.encoded == ["a new first line"]
    assert same(data.condition(torch.tensor([1, 0])), expected(teacher, [TEXTS[0], "a new first line"]))


def test_processes_share_the_prompts_though_they_look_at_different_times(source, monkeypatch):
    monkeypatch.setattr(module, "_SHARD_ROWS", 8)
    teachers = [HashTeacher() for _ in range(3)]
    sources = [source(teacher) for teacher in teachers]
    for process, data in enumerate(sources):  # each finds what the earlier ones have already written
        data.prepare(quiet, process, 3)
    shares = [[text for text in teacher.encoded if text not in KEPT] for teacher in teachers]
    assert sorted(text for share in shares for text in share) == sorted(TEXTS)
    assert [len(share) for share in shares] == [20, 20, 20]
    for data, teacher in zip(sources, teachers, strict=True):
        before = len(teacher.encoded)
        assert same(data.condition(torch.arange(60)), expected(teacher, TEXTS))
        assert len(teacher.encoded) == before


def test_more_processes_than_prompts(source, prompts):
    prompts.write_text("only one\n")
    source(HashTeacher()).prepare(quiet)
    told = []
    source(HashTeacher()).prepare(lambda done, total: told.append((done, total)), 3, 4)
    assert told == [(0, 0)]


def shard_files(tmp_path):
    return sorted((tmp_path / "cache").glob("*/[0-9a-f]*.safetensors"))


def test_a_damaged_shard_is_made_again(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARD_ROWS", 20)
    first = source(HashTeacher())
    first.prepare(quiet)
    victim = first._cache._shards[int(first._cache._index.find(first._prompts.digests[:1])[0][0])]
    content = bytearray(victim.read_bytes())
    content[-3] ^= 0xFF
    victim.write_bytes(content)
    teacher = HashTeacher()
    data = source(teacher)
    with pytest.warns(UserWarning, match="1 damaged files"):
        data.prepare(quiet)
    assert len(teacher.encoded) == 20 and TEXTS[0] in teacher.encoded
    assert victim.read_bytes() != content, "the same rows have the same name"
    assert same(data.condition(torch.arange(60)), expected(teacher, TEXTS))


def test_what_turns_out_unreadable_in_the_middle_is_made_again_and_kept(source, tmp_path):
    teacher = HashTeacher()
    data = source(teacher)
    data.prepare(quiet)
    teacher.batches.clear()
    for path in shard_files(tmp_path):
        path.write_bytes(b"x" * 200)
    data._cache._opened.clear()
    with pytest.warns(UserWarning) as caught:
        condition = data.condition(torch.tensor([61, 7]))
    assert any("cannot be read" in str(one.message) for one in caught)
    assert any("60 embeddings are gone and are made again" in str(one.message) for one in caught)
    assert same(condition, expected(teacher, [TEXTS[0], TEXTS[7]]))
    assert sorted(teacher.encoded) == sorted(TEXTS), "all that was lost, in one go"
    assert teacher.released == 2
    again = source(HashTeacher())
    again._cache.open()
    assert len(again._cache.missing(again._prompts.digests)) == 0


def test_a_big_loss_is_restored_a_shard_at_a_time_what_is_asked_for_first(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARD_ROWS", 8)
    teacher = HashTeacher()
    data = source(teacher)
    data.prepare(quiet)
    teacher.batches.clear()
    for path in shard_files(tmp_path):
        path.unlink()
    data._cache._opened.clear()
    with pytest.warns(UserWarning) as caught:
        condition = data.condition(torch.tensor([59, 60]))
    assert any("8 embeddings are gone" in str(one.message) for one in caught)
    assert same(condition, expected(teacher, [TEXTS[59], TEXTS[5]]))
    assert len(teacher.encoded) == 8


def test_before_preparation_rows_are_computed_and_nothing_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_DIRECT", 3)
    teacher = HashTeacher()
    data = source(teacher)
    items = torch.tensor([2, 61, 2, 0])
    wanted = expected(teacher, [TEXTS[2], TEXTS[0], TEXTS[2], TEXTS[0]])
    assert same(data.condition(items), wanted)
    assert same(data.condition(items), wanted)
    assert len(teacher.encoded) == 3
    data.condition(torch.arange(10, 16))
    assert len(data._direct) == 3
    assert same(data.condition(items), wanted)
    assert not (tmp_path / "cache").exists()


def test_before_preparation_the_cache_of_an_earlier_run_serves(source):
    source(HashTeacher()).prepare(quiet)
    teacher = HashTeacher()
    assert same(source(teacher).condition(torch.tensor([4, 9])), expected(teacher, [TEXTS[4], TEXTS[9]]))
    assert teacher.encoded == []


def test_embeddings_that_are_not_finite_are_refused(source, tmp_path):
    teacher = HashTeacher()
    teacher.encode_rows = lambda texts: [{"text": torch.full((2, 3), float("nan"))} for _ in texts]
    with pytest.raises(TeacherError, match="NaN or infinite"):
        source(teacher).prepare(quiet)
    assert shard_files(tmp_path) == []


def test_only_teachers_of_text_take_prompts(source):
    with pytest.raises(TeacherError, match="yet to be trained"):
        source(None)
    gmm = GaussianMixtureTeacher.load(GaussianMixtureTeacher.Settings(type="gmm"))
    with pytest.raises(TeacherError, match="'gmm'"):
        source(gmm)


def test_the_shipped_prompts_are_sixty_four_and_of_sensible_length(source):
    data = source(HashTeacher(), path=None)
    texts = data._prompts.texts(range(data.size))
    assert data.size == len(set(texts)) == 64
    assert all(4 <= len(text.split()) <= 30 for text in texts)


def test_the_default_cache_is_a_folder_of_mfd(source, tmp_path, monkeypatch):
    monkeypatch.setenv("MFD_CACHE", str(tmp_path / "home"))
    source(HashTeacher(), cache=None).prepare(quiet)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["embeddings"]


def test_settings_reach_the_file(source, tmp_path):
    path = tmp_path / "captions.json"
    path.write_text('{"caption": "a fox"}\nbroken\n')
    settings = {"path": str(path), "format": "jsonl", "field": "caption"}
    with pytest.raises(TeacherError, match="line 2: no JSON"):
        source(HashTeacher(), **settings)
    with pytest.warns(UserWarning, match="left out"):
        assert source(HashTeacher(), **settings, malformed="skip").size == 1


def test_nothing_warns_in_the_ordinary_case(source):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = source(HashTeacher())
        data.condition(torch.tensor([1]))
        data.prepare(quiet)
        data.condition(torch.tensor(np.arange(62)))
