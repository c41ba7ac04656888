"""What the manifest says, and whether a folder is a cache."""

from __future__ import annotations

import torch

from frostline.fast import cache_manifest
from frostline.fast.cache_key import CacheKey
from frostline.fast.cache_manifest import Manifest, TableRecord, read_both, read_manifest, remove_others, write_table
from frostline.fast.features import Place
from frostline.fast.narrowing import Losses
from frostline.fast.sample_parts import form_of
from frostline.fast.sample_table import SampleTable, digests
from frostline.fast.shards import ShardRecord

KEY = CacheKey({"weights": "0"}, {}, (Place("x", (2,), torch.float32),), 4, None, "", False, "none", 0, "any")
RECORD = ShardRecord("view-001-shard-00007.safetensors", 1, ((0, 3), (9, 10)), "ab", 12, {"x": Losses(0.1, 1 / 3, 2)})


def manifest(table: TableRecord, *shards: ShardRecord) -> Manifest:
    return Manifest(KEY, "origin", form_of((1, torch.zeros(2))), form_of(None), 2, table, shards, 1 / 7)


def test_a_manifest_comes_back_as_it_was(tmp_path) -> None:
    whole = manifest(TableRecord("samples-00000.safetensors", "cd", 5), RECORD)
    cache_manifest.write_manifest(tmp_path, whole)
    assert read_manifest(tmp_path) == whole
    assert whole.nbytes == 17
    assert whole.next_file(1) == "view-001-shard-00008.safetensors"
    assert whole.next_file(12) == "view-012-shard-00000.safetensors"


def test_a_folder_that_is_not_there_or_empty_or_hardly_begun_is_none(tmp_path) -> None:
    assert read_both(tmp_path / "none") is None
    assert read_both(tmp_path) is None
    (tmp_path / ".lock").touch()
    (tmp_path / ".manifest.json.0a1b2c3d.partial").touch()
    write_table(tmp_path, SampleTable.empty())
    assert read_both(tmp_path) is None


def test_a_reader_that_meets_a_writer_takes_the_newer_table(tmp_path, monkeypatch) -> None:
    old = manifest(write_table(tmp_path, SampleTable.empty().placed(digests("a"))))
    new = manifest(write_table(tmp_path, SampleTable.empty().placed(digests("abc"))))
    assert old.table.file != new.table.file
    cache_manifest.write_manifest(tmp_path, new)
    remove_others(tmp_path, new)
    answers = [old, new]
    monkeypatch.setattr(cache_manifest, "read_manifest", lambda folder: answers.pop(0))
    both = read_both(tmp_path)
    assert both is not None
    assert (both[0], len(both[1].order)) == (new, 3)


def test_only_files_of_ours_that_nobody_names_are_removed(tmp_path) -> None:
    table = write_table(tmp_path, SampleTable.empty())
    for name in (RECORD.file, "view-001-shard-00001.safetensors", "view-1.safetensors", "samples.csv", ".a.1.partial"):
        (tmp_path / name).touch()
    remove_others(tmp_path, manifest(table, RECORD))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        table.file,
        "samples.csv",
        RECORD.file,
        "view-1.safetensors",
    ]
