"""What is in a checkpoint, counted by hand, and without reading a value."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from frostline.checkpoint import inspect, open_checkpoint, plan_load
from frostline.checkpoint.convert import PLAN
from frostline.checkpoint.inspection import Part, size_text
from frostline.checkpoint.stored import InMemory


def test_counts_against_a_count_by_hand(tmp_path: Path):
    state = {
        "stem.conv.weight": torch.zeros(4, 3, 3, 3),  # 108 elements, 432 bytes
        "stem.bn.weight": torch.zeros(4),
        "stem.bn.bias": torch.zeros(4),
        "stem.bn.running_mean": torch.zeros(4),
        "stem.bn.running_var": torch.zeros(4),
        "stem.bn.num_batches_tracked": torch.tensor(3),  # 1 element, 8 bytes
        "bn2.running_mean": torch.zeros(2, dtype=torch.float64),
        "bn2.running_var": torch.zeros(2, dtype=torch.float64),
        "head.weight": torch.zeros(5, 4, dtype=torch.float16),
        "token": torch.zeros(7, dtype=torch.bool),
    }
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 1}, tmp_path / "a.pt")
    found = inspect(open_checkpoint(tmp_path / "a.pt"))
    assert inspect(tmp_path / "a.pt") == found
    assert found.parts == (
        Part("stem", 6, 125, 504, ("float32", "int64"), 1),
        Part("bn2", 2, 4, 32, ("float64",), 1),
        Part("head", 1, 20, 40, ("float16",), 0),
        Part("", 1, 7, 7, ("bool",), 0),
    )
    assert (found.tensors, found.elements, found.bytes) == (10, 156, 583)
    assert (found.norms, found.counters, found.tied) == (2, 1, 0)
    assert (found.title, found.format, found.files) == ("a.pt", "torch", 1)
    assert found.choices == ("container 'model'", "prefix 'module.' stripped")
    assert found.notes == ()
    assert str(found).splitlines()[:4] == [
        "a.pt: torch, 10 tensors, 156 elements, 583 B",
        "  container 'model'",
        "  prefix 'module.' stripped",
        "  2 norm layers with running statistics, 1 with num_batches_tracked",
    ]
    assert "(root)" in str(found)


def test_sums_over_parts_are_those_of_a_real_net():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), nn.Linear(8, 2))
    found = inspect(open_checkpoint(model))
    values = model.state_dict().values()
    assert sum(part.tensors for part in found.parts) == found.tensors == len(values)
    assert sum(part.elements for part in found.parts) == found.elements == sum(value.numel() for value in values)
    assert sum(part.bytes for part in found.parts) == found.bytes == sum(value.nbytes for value in values)


def test_tied_bytes_count_once(tmp_path: Path):
    weight = torch.zeros(10, 4)
    state = {"embed.weight": weight, "head.weight": weight, "alias": weight, "other": weight.clone()}
    torch.save(state, tmp_path / "a.pt")
    for source in (state, tmp_path / "a.pt"):
        found = inspect(open_checkpoint(source))
        assert (found.tensors, found.elements, found.tied, found.bytes) == (4, 160, 2, 320)
        assert "2 names stand for a tensor that has another name too" in str(found)


def test_shards_are_counted_without_their_index(tmp_path: Path):
    for number, name in enumerate(("a", "b")):
        save_file({name: torch.ones(1)}, tmp_path / f"{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "0.safetensors", "b": "1.safetensors"}}))
    found = inspect(index)
    assert (found.files, found.shards) == (3, 2)
    assert str(found).splitlines()[0] == (
        "model.safetensors.index.json: sharded safetensors in 2 shards, 2 tensors, 2 elements, 8 B"
    )
    alone = inspect(tmp_path / "0.safetensors")
    assert (alone.files, alone.shards) == (1, 0)
    assert "shard" not in str(alone)


def test_no_value_is_read():
    class Unread(InMemory):
        def read(self) -> Tensor:
            raise AssertionError("a value was read")

    unread = Unread((2, 3), torch.float32, "here", torch.zeros(2, 3))
    checkpoint = replace(open_checkpoint({"a.w": torch.zeros(1)}), tensors={"a.w": unread})
    assert inspect(checkpoint).elements == 6
    with pytest.raises(AssertionError, match="was read"):  # the check can see it
        checkpoint.read_all()


def test_control_characters_are_written_out_everywhere(tmp_path: Path):
    nasty = "\x1b[31m<b>"
    path = tmp_path / "a.pt"
    torch.save({f"{nasty}.w": torch.zeros(1), f"{nasty}2": "x"}, path)
    found = inspect(open_checkpoint(path))
    assert found.beside == (f"{nasty}2",)
    for text in (str(found), found._repr_html_()):
        assert "\x1b" not in text
    assert "<b>" not in found._repr_html_()
    assert "beside them, no tensors: \\x1b[31m<b>2" in str(found)


def test_json_is_json(tmp_path: Path):
    found = inspect(open_checkpoint({"a.w": torch.zeros(3), "epoch": 3}))
    told = json.loads(json.dumps(found.to_json()))
    assert told["schema_version"] == 1
    assert told["beside"] == ["epoch"]
    assert told["parts"] == [{"path": "a", "tensors": 1, "elements": 3, "bytes": 12, "dtypes": ["float32"], "norms": 0}]


def test_many_entries_beside_are_cut():
    state = {"a.w": torch.zeros(1), **{f"x{n}": n for n in range(20)}}
    assert "x7 ...\n" in str(inspect(open_checkpoint(state)))


def test_a_file_that_we_wrote_says_where_it_comes_from(small: tuple[nn.Module, Path, dict[str, Any]], tmp_path: Path):
    model, path, arguments = small
    plan = plan_load(model, path, **arguments)
    plan.write(tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    assert inspect(checkpoint).notes == (f"made from small.pt for SmallNet by a plan of {len(plan.rows)} rows",)


@pytest.mark.parametrize("header", ["", "{", "[" * 100_000, '{"schema_version": 1}', '{"schema_version": "\\u001b"}'])
def test_a_plan_in_the_header_that_is_none_is_said_and_no_more(header: str):
    checkpoint = replace(open_checkpoint({"a.w": torch.zeros(1)}), metadata={PLAN: header})
    (note,) = inspect(checkpoint).notes
    assert note.startswith(("the state dict holds no plan", "the plan in the state dict is of another version"))
    assert note.isprintable()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1049, "1.05 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (44_700_000, "44.7 MB"),
        (999_999_999, "1 GB"),
        (1_500_000_000_000, "1,500 GB"),
        (999_700_000_000, "1,000 GB"),
    ],
)
def test_sizes_for_people(count: int, text: str):
    assert size_text(count) == text
