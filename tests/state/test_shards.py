"""What a process holds of a tensor that is spread over several, on stand-ins for DTensor; real ones: test_sharded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.state.digest import digest
from frostline.state.shards import cut, is_distributed, own_part, part_of
from frostline.state.snapshot import Snapshot, snapshot


class Spread(Tensor):
    """Has what a DTensor has."""

    device_mesh: Any = None
    placements: Any = ()
    chunks: Any = ()

    def to_local(self) -> Tensor:
        return self.as_subclass(Tensor)

    def __create_chunk_list__(self) -> Any:
        return self.chunks


def spread(value: Tensor, *chunks: tuple[tuple[int, ...], tuple[int, ...]]) -> Tensor:
    tensor = value.as_subclass(Spread)
    tensor.chunks = [SimpleNamespace(offsets=offsets, sizes=sizes) for offsets, sizes in chunks]
    return tensor


WHOLE = torch.arange(12.0).view(4, 3)


@pytest.mark.parametrize(
    ("chunks", "part"),
    [
        ([((2, 0), (4, 3))], ((2, 0), (4, 3))),
        ([((0, 0), (4, 3))], None),
        ([], ((0, 0), (0, 0))),  # of more processes than rows, some have none
    ],
)
def test_which_part_is_held(chunks: Any, part: Any):
    assert part_of(spread(WHOLE, *chunks)) == part


def test_a_plain_tensor_is_its_own_part():
    assert not is_distributed(WHOLE)
    assert own_part(WHOLE) is WHOLE
    assert part_of(WHOLE) is None


def test_own_part_is_the_memory_of_the_tensor():
    tensor = spread(WHOLE.clone(), ((0, 0), (2, 3)))
    own_part(tensor).zero_()
    assert not tensor.to_local().any()


@pytest.mark.parametrize("part", [((1, 0), (2, 3)), ((4, 0), (0, 3)), ((0, 1), (4, 1)), ((9, 0), (0, 3))])
def test_a_cut_is_a_view(part: Any):
    found = cut(WHOLE, part)
    (row, column), (rows, columns) = part
    assert torch.equal(found, WHOLE[row : row + rows, column : column + columns])
    assert not found.numel() or found.untyped_storage().data_ptr() == WHOLE.untyped_storage().data_ptr()


class TestSnapshot:
    """FSDP2 puts the gathered parameter in the place of the shard, for as long as a pass needs it."""

    def model(self, value: Tensor) -> nn.Module:
        model = nn.Module()
        model.register_buffer("w", value)
        return model

    def taken_of_a_shard(self) -> Snapshot:
        taken = snapshot(self.model(WHOLE.clone()))
        record = taken["w"]
        return Snapshot(
            taken | {"w": type(record)(**{**record.__dict__, "part": ((2, 0), (2, 3)), "mark": digest(WHOLE[2:])})}
        )

    def test_of_a_gathered_tensor_the_held_part_is_compared(self):
        before = self.taken_of_a_shard()
        assert not before.diff(self.model(WHOLE.clone()))
        other = WHOLE.clone()
        other[0] += 1  # another process holds that
        assert not before.diff(self.model(other))
        other[3] += 1
        assert [(row.path, row.change) for row in before.diff(self.model(other)).moved] == [("w", "changed")]

    def test_sharding_is_named_as_such(self):
        before, after = snapshot(self.model(WHOLE.clone())), self.taken_of_a_shard()
        [row] = before.diff(after).moved
        assert row.change == "resharded"
        assert row.before == "buffer float32 (4, 3)"
        assert row.after == "buffer float32 (4, 3), of which (2, 3) at (2, 0)"

    def test_json(self):
        before = self.taken_of_a_shard()
        again = Snapshot.from_json(before.to_json())
        assert again["w"].part == ((2, 0), (2, 3))
        assert not again.diff(before)
        assert all("part" not in row for row in snapshot(self.model(WHOLE)).to_json()["entries"])
