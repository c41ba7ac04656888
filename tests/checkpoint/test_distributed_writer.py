"""Folders of torch.distributed.checkpoint, written by one process; by two: tests/freezing/test_sharded.py."""

from __future__ import annotations

import errno
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_saver

import frostline as fl
from frostline.checkpoint import open_checkpoint, plan_load
from frostline.checkpoint.convert import convert
from frostline.checkpoint.distributed_writer import write_distributed
from frostline.checkpoint.save_distributed import save_distributed
from frostline.errors import CannotWrite, CheckpointError, CorruptCheckpoint, NothingSelected, StorageFull
from frostline.state import snapshot
from frostline.state.digest import digest_all


def build(seed: int = 0, classes: int = 2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, classes))


def torch_reads(folder: Path, like: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {name: torch.full_like(value, 7) for name, value in like.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(found, checkpoint_id=folder)
    return found


def torch_names(folder: Path) -> list[str]:
    return list(dcp.FileSystemReader(folder).read_metadata().state_dict_metadata)


class TestOfAModel:
    def test_torch_reads_it_equal_to_the_bit(self, tmp_path: Path):
        model = build()
        model[0].weight.data[0, 0] = float("nan")
        before = snapshot(model)
        assert save_distributed(model, tmp_path / "a") == 9
        assert not before.diff(model)
        found = torch_reads(tmp_path / "a", model.state_dict())
        assert digest_all(found) == digest_all(model.state_dict())
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_an_empty_folder_is_taken(self, tmp_path: Path):
        (tmp_path / "a").mkdir()
        save_distributed(build(), tmp_path / "a")
        assert plan_load(build(1), tmp_path / "a").apply().coverage == 1.0

    def test_wrappers_are_left_out_of_names(self, tmp_path: Path):
        save_distributed(nn.DataParallel(build()), tmp_path / "a")
        assert set(open_checkpoint(tmp_path / "a").tensors) == set(build().state_dict())

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"take": "2"}, ["2.weight", "2.bias"]),
            ({"take": ["2", "0.bias"]}, ["0.bias", "2.weight", "2.bias"]),
            ({"take": nn.BatchNorm1d}, [f"1.{n}" for n in build()[1].state_dict()]),
            ({"what": "trainable"}, ["2.weight", "2.bias"]),
            ({"what": "held"}, [f"{n}" for n in build().state_dict() if n[0] in "01"]),
            ({"what": "held", "take": "0"}, ["0.weight", "0.bias"]),
        ],
    )
    def test_a_part(self, options: dict[str, Any], expected: list[str], tmp_path: Path):
        model = build()
        hold = fl.freeze(model, "0", "1")
        assert save_distributed(model, tmp_path / "a", **options) == len(expected)
        assert sorted(open_checkpoint(tmp_path / "a").tensors) == sorted(expected)
        assert sorted(set(torch_names(tmp_path / "a")) - {"frostline.norms"}) == sorted(expected)
        hold.verify()

    def test_a_part_that_is_not_there(self, tmp_path: Path):
        with pytest.raises(NothingSelected):
            save_distributed(build(), tmp_path / "a", take="head")
        with pytest.raises(CheckpointError, match="there is no tensor to write"):
            save_distributed(build(), tmp_path / "a", what="held")
        assert not list(tmp_path.iterdir())

    def test_the_settings_of_norm_layers_are_beside_it(self, tmp_path: Path):
        model = build()
        model[1].eps = 0.5
        save_distributed(model, tmp_path / "a")
        assert "eps is 0.5 in the checkpoint and 1e-05 in the model" in str(plan_load(build(), tmp_path / "a"))

    def test_what_get_extra_state_gives(self, tmp_path: Path):
        class Counting(nn.Linear):
            def get_extra_state(self) -> dict[str, int]:
                return {"seen": 3}

            def set_extra_state(self, state: Any) -> None:
                self.seen = state["seen"]

        model = nn.Sequential(Counting(2, 2))
        save_distributed(model, tmp_path / "a")
        state = model.state_dict()
        state["0._extra_state"] = {"seen": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(state, checkpoint_id=tmp_path / "a")
        assert state["0._extra_state"] == {"seen": 3}


class TestOfAPlan:
    def test_its_result_and_the_plan_beside_it(self, tmp_path: Path):
        source, model = build(1), build(2)
        torch.save({"state_dict": {f"module.{n}": v for n, v in source.state_dict().items()}}, tmp_path / "a.pth")
        plan = plan_load(model, tmp_path / "a.pth", keep="2", drop="2.*")
        before = snapshot(model)
        assert save_distributed(plan, tmp_path / "b") == 7
        assert not before.diff(model)
        found = torch_reads(tmp_path / "b", {n: v for n, v in source.state_dict().items() if n[0] != "2"})
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in found.items())
        assert json.loads(open_checkpoint(tmp_path / "b").metadata["frostline.plan"])["complete"]
        assert fl.checkpoint.verify(tmp_path / "a.pth", tmp_path / "b").by_plan
        assert fl.checkpoint.verify(tmp_path / "a.pth", tmp_path / "b").holds

    def test_on_paper(self, tmp_path: Path):
        torch.save(build(1).state_dict(), tmp_path / "a.pth")
        fl.checkpoint.save_plan(plan_load(build(), tmp_path / "a.pth"), tmp_path / "plan.json")
        assert convert(tmp_path / "a.pth", tmp_path / "plan.json", tmp_path / "b", to="distributed") == 9
        assert fl.checkpoint.verify(tmp_path / "a.pth", tmp_path / "b").holds

    def test_a_folder_is_converted_back(self, tmp_path: Path):
        save_distributed(build(1), tmp_path / "a")
        fl.checkpoint.save_plan(plan_load(build(), tmp_path / "a"), tmp_path / "plan.json")
        assert convert(tmp_path / "a", tmp_path / "plan.json", tmp_path / "b.safetensors") == 9
        assert fl.checkpoint.verify(tmp_path / "a", tmp_path / "b.safetensors").holds

    def test_an_incomplete_one(self, tmp_path: Path):
        torch.save(build(1, classes=5).state_dict(), tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match="does not fit"):
            save_distributed(plan_load(build(), tmp_path / "a.pth"), tmp_path / "b")
        assert not (tmp_path / "b").exists()


class TestOfTensors:
    def test_nested_with_other_values(self, tmp_path: Path):
        model = build()
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        state = {"model": model.state_dict(), "optim": optimizer.state_dict(), "epoch": 3}
        assert save_distributed(state, tmp_path / "a") == 9 + 18
        assert open_checkpoint(tmp_path / "a").container == ("model",)
        assert plan_load(build(1), tmp_path / "a").apply().coverage == 1.0

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.complex64])
    def test_dtypes_and_layouts(self, dtype: torch.dtype, tmp_path: Path):
        value = torch.randn(3, 4).to(dtype)
        tensors = {
            "a": value,
            "turned": value.t(),
            "wide": value[:1].expand(5, 4),
            "none": value[:0],
            "one": value[0, 0],
        }
        assert save_distributed(tensors, tmp_path / "a") == 5
        found = open_checkpoint(tmp_path / "a").read_all()
        assert {n: v.tolist() for n, v in found.items()} == {n: v.tolist() for n, v in tensors.items()}

    def test_a_part_of_them_cannot_be_asked_for(self, tmp_path: Path):
        with pytest.raises(CheckpointError, match="choose among the entries of a model"):
            save_distributed(build().state_dict(), tmp_path / "a", take="0")


class TestAllOrNothing:
    """The naive way leaves a folder with shards, which looks like a checkpoint that somebody damaged."""

    def test_what_is_there_is_not_written_over(self, tmp_path: Path):
        save_distributed(build(), tmp_path / "a")
        (tmp_path / "b").write_text("mine")
        for name in ("a", "b"):
            with pytest.raises(CheckpointError, match="is there already"):
                save_distributed(build(1), tmp_path / name)
        assert torch.equal(open_checkpoint(tmp_path / "a").tensors["0.weight"].read(), build()[0].weight)

    def test_a_folder_that_does_not_exist(self, tmp_path: Path):
        with pytest.raises(CannotWrite, match="is no folder"):
            save_distributed(build(), tmp_path / "none" / "a")
        assert not list(tmp_path.iterdir())

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(pickle, "dump", full)  # the index is written last
        with pytest.raises(StorageFull, match="no space left on the device"):
            save_distributed(build(), tmp_path / "a")
        assert not list(tmp_path.iterdir())
        with warnings.catch_warnings(), pytest.raises(BaseException, match="No space left"):
            warnings.simplefilter("ignore")
            dcp.save(build().state_dict(), checkpoint_id=tmp_path / "naive")
        assert [path.name for path in (tmp_path / "naive").iterdir()]

    def test_a_value_that_cannot_be_pickled(self, tmp_path: Path):
        with pytest.raises(CannotWrite, match="cannot be written"):
            save_distributed({"a": torch.ones(2), "b": lambda: None}, tmp_path / "a")
        assert not list(tmp_path.iterdir())

    def test_what_was_written_is_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        tensor = torch.ones(2)
        real = state_dict_saver.save

        def while_somebody_trains(*arguments: Any, **options: Any) -> Any:
            found = real(*arguments, **options)
            tensor.add_(1)
            return found

        monkeypatch.setattr(state_dict_saver, "save", while_somebody_trains)
        with pytest.raises(CorruptCheckpoint, match="does not hold what was written: a"):
            save_distributed({"a": tensor, "b": torch.ones(2)}, tmp_path / "a")
        assert not list(tmp_path.iterdir())

    def test_interrupted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "rmdir", stop)
        (tmp_path / "a").mkdir()
        with pytest.raises(KeyboardInterrupt):
            write_distributed(tmp_path / "a", lambda: {"a": torch.ones(2)})
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert not list((tmp_path / "a").iterdir())
