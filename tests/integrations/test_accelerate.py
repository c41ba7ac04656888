"""Under accelerate: `prepare` keeps holds in any order, and its checkpoints carry schedules and what was held."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import CannotFreeze, FrozenStateMoved, ModelError
from frostline.integrations.accelerate import register_for_checkpointing
from frostline.optim import Epoch, Stage, Unfreeze, Unfreezing

accelerate = pytest.importorskip("accelerate")

DATA = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.arange(32) % 2)


@pytest.fixture(autouse=True)
def _a_new_start() -> Iterator[None]:
    """What accelerate keeps for the whole process: the precision that its first accelerator had."""

    def forget() -> None:
        accelerate.state.AcceleratorState._reset_state(True)
        accelerate.state.GradientState._reset_state()

    forget()
    yield
    forget()


def build(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout())
    return nn.Sequential(trunk, nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), nn.Linear(8, 2))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)


def epoch(accelerator, model, optimizer, loader, scheduler=None) -> None:
    """As its documentation writes a loop; gradients of zeros are left in."""
    model.train()
    for images, labels in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(images), labels))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad(set_to_none=False)


def moved(before: fl.state.Snapshot, model: nn.Module) -> set[str]:
    return {change.path for change in before.diff(model).moved}


class TestPrepare:
    @pytest.mark.parametrize("precision", ["no", "bf16"])
    @pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
    def test_it_keeps_a_hold_in_any_order(self, order: tuple[int, ...], precision: str):
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
        model = build()
        optimizer = optimizer_of(model)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        hold = fl.freeze(model, "0", optimizer=optimizer)
        before = fl.snapshot(model)
        things = [model, optimizer, torch.utils.data.DataLoader(DATA, batch_size=8), scheduler]
        ready = dict(zip(order, accelerator.prepare(*[things[number] for number in order]), strict=True))
        hold.verify()
        for parameter in model[0].parameters():
            parameter.grad = torch.ones_like(parameter)
        epoch(accelerator, *[ready[number] for number in range(4)])
        hold.verify()
        assert {path.split(".")[0] for path in moved(before, model)} == {"1", "2"}
        assert accelerator.unwrap_model(ready[0]) is model

    @pytest.mark.parametrize("precision", ["no", "bf16"])
    def test_a_hold_that_comes_after_it(self, precision: str):
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
        model = build()
        before = fl.snapshot(model)
        loader = torch.utils.data.DataLoader(DATA, batch_size=8)
        ready, optimizer, loader = accelerator.prepare(model, optimizer_of(model), loader)
        epoch(accelerator, ready, optimizer, loader)  # momentum, which would go on moving it
        hold = fl.freeze(ready, "0", optimizer=optimizer)
        epoch(accelerator, ready, optimizer, loader)
        hold.verify()
        hold.thaw()
        assert "0.1.running_mean" in moved(before, model)

    def test_by_hand_it_moves(self):
        """The failing twin."""
        accelerator = accelerate.Accelerator(cpu=True)
        model = build()
        loader = torch.utils.data.DataLoader(DATA, batch_size=8)
        ready, optimizer, loader = accelerator.prepare(model, optimizer_of(model), loader)
        epoch(accelerator, ready, optimizer, loader)
        model[0].requires_grad_(False).eval()
        before = fl.snapshot(model, "0")
        epoch(accelerator, ready, optimizer, loader)
        assert {"0.0.weight", "0.1.running_mean"} <= moved(before, model)


class Run:
    """A loop with a hold, a schedule and checkpoints."""

    schedule = Unfreeze((Stage(("1",), Epoch(1)),))

    def __init__(self, seed: int = 0, schedule: Unfreeze | None = None) -> None:
        accelerate.state.AcceleratorState._reset_state(True)
        self.accelerator = accelerate.Accelerator(cpu=True)
        self.model = build(seed)
        optimizer = optimizer_of(self.model)
        self.hold = fl.freeze(self.model, "0", optimizer=optimizer)
        self.unfreezing = Unfreezing(schedule or self.schedule, self.model, optimizer)
        loader = torch.utils.data.DataLoader(DATA, batch_size=8)
        self.ready = self.accelerator.prepare(self.model, optimizer, loader)
        register_for_checkpointing(self.accelerator, self.hold, self.unfreezing)

    def epoch(self) -> None:
        epoch(self.accelerator, *self.ready)
        self.unfreezing.epoch_end()

    def save(self, folder: Path) -> Path:
        self.accelerator.save_state(str(folder))
        return folder


class TestCheckpoints:
    def test_a_run_goes_on(self, tmp_path: Path):
        first = Run()
        first.epoch()
        folder = first.save(tmp_path / "one")
        first.epoch()
        again = Run(seed=1)
        assert not again.model[1][0].weight.requires_grad
        again.accelerator.load_state(str(folder))
        assert again.model[1][0].weight.requires_grad
        assert not again.model[0][0].weight.requires_grad
        again.epoch()
        assert not fl.snapshot(first.model).diff(fl.snapshot(again.model))
        again.hold.verify()

    def test_without_it_the_schedule_begins_anew(self, tmp_path: Path):
        """The failing twin: what is not registered is not saved."""
        accelerator = accelerate.Accelerator(cpu=True)
        model = build()
        optimizer = optimizer_of(model)
        unfreezing = Unfreezing(Run.schedule, model, optimizer)
        accelerator.prepare(model, optimizer)
        unfreezing.epoch_end()
        accelerator.save_state(str(tmp_path))
        model = build()
        optimizer = optimizer_of(model)
        unfreezing = Unfreezing(Run.schedule, model, optimizer)
        accelerator.free_memory()
        accelerator.prepare(model, optimizer)
        accelerator.load_state(str(tmp_path))
        assert unfreezing.held == ["1"]

    @pytest.mark.parametrize("entry", ["0.0.weight", "0.1.running_var"])
    def test_what_was_changed_in_the_checkpoint_is_named(self, tmp_path: Path, entry: str):
        import safetensors.torch

        folder = Run().save(tmp_path / "one")
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        weights[entry] += 1
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(FrozenStateMoved, match=rf"1 of 7 held .* the checkpoint's run held: {entry}") as caught:
            Run().accelerator.load_state(str(folder))
        assert caught.value.diff.paths == [entry]

    def test_what_has_moved_is_not_saved(self, tmp_path: Path):
        run = Run()
        with torch.no_grad():
            run.model[0][0].bias.add_(1)
        with pytest.raises(FrozenStateMoved, match=r"0\.0\.bias"):
            run.save(tmp_path / "one")
        assert list((tmp_path / "one").iterdir()) == []

    def test_another_schedule_is_refused(self, tmp_path: Path):
        folder = Run().save(tmp_path / "one")
        with pytest.raises(ModelError, match="of another schedule"):
            Run(schedule=Unfreeze((Stage(("1",), Epoch(2)),))).accelerator.load_state(str(folder))

    def test_what_was_registered_in_another_order_is_refused(self, tmp_path: Path):
        folder = Run().save(tmp_path / "one")
        run = Run()
        accelerate.state.AcceleratorState._reset_state(True)
        accelerator = accelerate.Accelerator(cpu=True)
        accelerator.prepare(*run.ready)
        register_for_checkpointing(accelerator, run.unfreezing, run.hold)
        with pytest.raises(ModelError, match="same holds and schedules in the same order"):
            accelerator.load_state(str(folder))

    def test_a_hold_that_was_released_has_nothing_to_say(self, tmp_path: Path):
        run = Run()
        run.hold.thaw()
        folder = run.save(tmp_path / "one")
        other = Run()
        other.accelerator.load_state(str(folder))
        other.hold.verify()


@pytest.mark.parametrize(("given", "said"), [((), "got none"), ((nn.Linear(1, 1),), "got Linear")])
def test_what_cannot_be_registered(given, said: str):
    with pytest.raises(CannotFreeze, match=said):
        register_for_checkpointing(accelerate.Accelerator(cpu=True), *given)


def test_no_such_statistics():
    with pytest.raises(CannotFreeze, match="'averaged'"):
        hold = fl.freeze(build(), "0")
        register_for_checkpointing(accelerate.Accelerator(cpu=True), hold, statistics="averaged")
