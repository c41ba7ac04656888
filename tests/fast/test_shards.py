"""Files of samples."""

from __future__ import annotations

import json

import pytest
import torch

from frostline.errors import CorruptCache
from frostline.fast.narrowing import Losses
from frostline.fast.shards import Column, ShardRecord, new_rows, open_shard, write_shard

COLUMNS = [Column("x", (3,), torch.bfloat16), Column("empty", (0,), torch.float32), Column("y", (), torch.int64)]
TENSORS = {
    "x": torch.arange(12).view(4, 3).bfloat16(),
    "empty": torch.empty(4, 0),
    "y": torch.arange(4),
}


def test_rows_come_back_as_bytes_of_every_type(tmp_path) -> None:
    path = tmp_path / "s"
    shard = open_shard(path, *write_shard(path, TENSORS, {}), COLUMNS)
    for column in COLUMNS:
        made, into = new_rows(column, 2)
        into[:] = shard.rows(column.name)[[3, 1]]
        assert made.equal(TENSORS[column.name][[3, 1]])
        assert into.shape == (2, column.nbytes)


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ([Column("z", (), torch.int64)], "'z' is nothing"),
        ([Column("x", (2,), torch.bfloat16)], r"'x' is bfloat16 \(4, 3\)"),
    ],
)
def test_a_file_of_other_columns_is_refused(columns, found, tmp_path) -> None:
    path = tmp_path / "s"
    digest, nbytes = write_shard(path, TENSORS, {})
    with pytest.raises(CorruptCache, match=found):
        open_shard(path, digest, nbytes, columns)
    with pytest.raises(CorruptCache, match="instead of 1\n"):
        open_shard(path, digest, 1, COLUMNS)
    path.write_bytes(b"")
    with pytest.raises(CorruptCache, match="it cannot be read"):
        open_shard(path, digest, 0, COLUMNS)


def test_a_record_comes_back_from_json() -> None:
    record = ShardRecord("a", 1, ((2, 4), (0, 1)), "ab", 7, {"x": Losses(1 / 3, 0.1, 2.0)})
    assert ShardRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert record.rows.tolist() == [2, 3, 0]
