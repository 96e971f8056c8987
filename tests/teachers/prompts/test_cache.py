"""Embeddings on disk: exact round trips, damage, leftovers, a full disk, and who may share a folder."""

import errno
import json
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from teachers.errors import TeacherError
from teachers.prompts import cache as module
from teachers.prompts.cache import EmbeddingCache, cache_home
from teachers.prompts.files import text_digest

ENCODING = {"encoder": "tiny", "revision": "1", "dtype": "bf16"}


def digests(*texts):
    return np.frombuffer(b"".join(map(text_digest, texts)), dtype=np.uint8).reshape(-1, 16)


def row(length, seed=0, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    return {
        "text": torch.randn(length, 6, generator=generator).to(dtype),
        "pooled": torch.randn(5, generator=generator),
        "ids": torch.arange(length),
        "scale": torch.tensor(float(seed), dtype=torch.float16),
    }


def same(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and torch.equal(first[name], second[name])
        for name in first
    )


def shards(cache):
    return sorted(cache.folder.glob("[0-9a-f]*.safetensors"))


def filled(folder, *texts, encoding=ENCODING):
    cache = EmbeddingCache(folder, encoding).open()
    for number, text in enumerate(texts):
        cache.write(digests(text), [row(3 + number, seed=number)])
    return cache


def test_rows_come_back_bit_for_bit(tmp_path):
    rows = [row(length, seed) for seed, length in enumerate((3, 1, 300, 0, 7))]
    rows[0]["text"][0, 0] = float("-0.0")
    keys = digests(*"abcde")
    cache = EmbeddingCache(tmp_path, ENCODING).open()
    cache.write(keys, rows)
    for reader in (cache, EmbeddingCache(tmp_path, ENCODING).open()):
        for index in (4, 0, 3, 2, 1):
            assert same(reader.read(keys[index]), rows[index])
        assert torch.signbit(reader.read(keys[0])["text"][0, 0])
    assert (tmp_path / cache.folder.name / "encoding.json").exists()
    assert json.loads((cache.folder / "encoding.json").read_text()) == ENCODING


def test_rows_are_found_among_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_OPEN", 2)
    texts = [f"text {number}" for number in range(40)]
    cache = EmbeddingCache(tmp_path, ENCODING).open()
    for first in range(0, 40, 4):
        cache.write(digests(*texts[first : first + 4]), [row(n % 5 + 1, n) for n in range(first, first + 4)])
    again = EmbeddingCache(tmp_path, ENCODING).open()
    assert len(again) == len(cache) == 40
    for number in np.random.default_rng(0).permutation(40):
        assert same(again.read(digests(texts[number])[0]), row(number % 5 + 1, int(number)))
    assert len(again._opened) == 2


def test_missing_gives_indices(tmp_path):
    empty = EmbeddingCache(tmp_path, ENCODING).open()
    assert empty.missing(digests("a", "b")).tolist() == [0, 1]
    assert empty.read(digests("a")[0]) is None
    assert list(tmp_path.iterdir()) == [], "looking writes nothing"
    cache = filled(tmp_path, "b", "d")
    assert cache.missing(digests("a", "b", "c", "d", "e")).tolist() == [0, 2, 4]
    assert cache.missing(digests("a")[:0]).tolist() == []


def test_digests_that_end_in_zeros_are_told_apart(tmp_path):
    keys = np.zeros((3, 16), dtype=np.uint8)
    keys[1, 0], keys[2, :2] = 7, (7, 1)
    cache = EmbeddingCache(tmp_path, ENCODING).open()
    cache.write(keys[[2, 1]], [row(2, 2), row(1, 1)])
    assert cache.missing(keys).tolist() == [0]
    assert same(cache.read(keys[1]), row(1, 1)) and same(cache.read(keys[2]), row(2, 2))


def test_another_encoding_has_other_entries(tmp_path):
    filled(tmp_path, "a")
    for name in ENCODING:
        other = EmbeddingCache(tmp_path, ENCODING | {name: "other"}).open()
        assert other.missing(digests("a")).tolist() == [0]
    reordered = dict(reversed(ENCODING.items()))
    assert EmbeddingCache(tmp_path, reordered).open().missing(digests("a")).tolist() == []


def test_a_shard_is_named_by_its_content_and_writing_it_twice_is_harmless(tmp_path):
    first = filled(tmp_path, "a")
    second = filled(tmp_path, "a")
    assert len(shards(first)) == 1
    assert module._digest(shards(first)[0]) == shards(first)[0].stem
    assert same(second.read(digests("a")[0]), row(3, 0))


def test_another_process_sees_new_rows_after_opening_again(tmp_path):
    reader = filled(tmp_path, "a")
    filled(tmp_path, "b")
    assert reader.read(digests("b")[0]) is None
    assert reader.open().read(digests("b")[0]) is not None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_damaged_shards_are_removed_and_told(tmp_path, damage):
    cache = filled(tmp_path, "a", "b")
    cache.open()  # now both are verified
    path = cache._shards[cache._index.find(digests("a"))[0][0]]
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    changed = {"flip": content, "cut": content[:-8], "empty": b"", "foreign": b"no tensors" * 50}[damage]
    path.write_bytes(changed)
    with pytest.warns(UserWarning, match="1 damaged files of embeddings left out"):
        EmbeddingCache(tmp_path, ENCODING).open(repair=False)
    assert path.exists()
    with pytest.warns(UserWarning, match="1 damaged files of embeddings removed"):
        again = EmbeddingCache(tmp_path, ENCODING).open()
    assert not path.exists()
    assert again.missing(digests("a", "b")).tolist() == [0]


def test_a_shard_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    cache = filled(tmp_path, "a", "b")
    hashed = []
    original = module._digest
    monkeypatch.setattr(module, "_digest", lambda path: hashed.append(path) or original(path))
    cache.open()
    assert sorted(hashed) == shards(cache)
    cache.open()
    assert len(hashed) == 2
    os.utime(shards(cache)[0], (1, 1))
    cache.open()
    assert len(hashed) == 3
    (cache.folder / "verified.json").write_text("[broken")
    cache.open()
    assert len(hashed) == 5


def test_a_shard_that_vanishes_in_the_middle_is_forgotten(tmp_path):
    cache = filled(tmp_path, "a", "b")
    for path in shards(cache):
        path.write_bytes(b"x" * 100)
    looking = EmbeddingCache(tmp_path, ENCODING)
    looking._add(shards(cache)[0], digests("c"))
    with pytest.warns(UserWarning, match="cannot be read"):
        assert looking.read(digests("c")[0]) is None
    assert len(shards(cache)) == 2, "whoever only looks removes nothing"
    with pytest.warns(UserWarning, match=r"cannot be read .* its 1 embeddings"):
        assert cache.read(digests("a")[0]) is None
    assert cache.missing(digests("a", "b")).tolist() == [0]
    assert len(shards(cache)) == 1


def test_a_second_copy_serves_when_the_first_is_unreadable(tmp_path):
    cache = EmbeddingCache(tmp_path, ENCODING).open()
    cache.write(digests("a"), [row(3)])
    cache.write(digests("a", "b"), [row(3), row(4)])
    cache.read(digests("b")[0])
    cache._shards[0].unlink()
    with pytest.warns(UserWarning, match="cannot be read"):
        assert same(cache.read(digests("a")[0]), row(3))


def test_leftovers_of_killed_processes_go_after_a_day(tmp_path):
    cache = filled(tmp_path, "a")
    old, young = cache.folder / ".1234.tmp", cache.folder / ".5678.tmp"
    for path in (old, young):
        path.write_bytes(b"half a shard")
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    assert len(cache.open()) == 1
    assert not old.exists() and young.exists()


def test_a_full_disk_says_where_and_how_much_and_leaves_nothing(tmp_path, monkeypatch):
    cache = filled(tmp_path, "a")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TeacherError, match=r"No space left on device\); [\d,]+ bytes needed, [\d,]+ free") as caught:
        cache.write(digests("b"), [row(9)])
    assert str(cache.folder) in caught.value.found and "data.cache" in caught.value.do
    assert len(shards(cache)) == 1 and not list(cache.folder.glob(".*"))
    assert cache.missing(digests("a", "b")).tolist() == [1]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TeacherError, match="cannot be written"):
        EmbeddingCache(tmp_path / "file", ENCODING).open().write(digests("a"), [row(1)])


def test_rows_of_different_kinds_are_refused(tmp_path):
    cache = EmbeddingCache(tmp_path, ENCODING).open()
    for other in (row(2, dtype=torch.float32), {"text": torch.zeros(2, 6, dtype=torch.bfloat16)}):
        with pytest.raises(TeacherError, match="embeddings of different kinds"):
            cache.write(digests("a", "b"), [row(2), other])


def test_files_get_the_modes_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        cache = filled(tmp_path, "a")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in cache.folder.iterdir()} == {0o640}


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    cache = filled(tmp_path, "a")
    foreign = cache.folder / "notes.safetensors"
    foreign.write_bytes(b"mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(cache.open()) == 1
    assert foreign.exists()


def test_where_caches_live(monkeypatch):
    home = Path.home()
    monkeypatch.setenv("MFD_CACHE", "/big/disk")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_home() == Path("/big/disk")
    monkeypatch.setenv("MFD_CACHE", "~/mine")
    assert cache_home() == home / "mine"
    monkeypatch.setenv("MFD_CACHE", "")
    assert cache_home() == Path("/shared/mfd")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_home() == home / ".cache/mfd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_home() == home / ".cache/mfd"


def test_a_big_index_finds_everything():
    keys = np.random.default_rng(0).integers(0, 256, (20_000, 16), dtype=np.uint8)
    index = module._Index()
    for shard in range(20):
        index.add(keys[shard * 1000 : (shard + 1) * 1000], shard)
    places, rows = index.find(keys[::-1])
    assert np.array_equal(places * 1000 + rows, np.arange(20_000)[::-1])
    assert index.drop(7) == 1000
    places, _ = index.find(keys)
    assert np.array_equal(np.flatnonzero(places < 0), np.arange(7000, 8000))
    assert sum(part.nbytes for part in (index._keys, index._shards, index._rows)) == 24 * 19_000
