"""Freeze in a Trainer: held to the bit, scheduled, resumed, and put back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning_nets import LIGHTNINGS_OWN, At, Net, fit, loader, trainer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils.data import DataLoader

import frostline as fl
from frostline.errors import CannotFreeze, CannotThaw, FrozenStateMoved, HeldAnew, ModelError, NothingSelected
from frostline.integrations.lightning import Freeze
from frostline.optim import Epoch, Plateau, Stage, Step, Unfreeze

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(message) for message in LIGHTNINGS_OWN)]

LATER = Unfreeze((Stage(("backbone",), Epoch(2)),))


def moved_in(net: nn.Module, do: Callable[[], Any]) -> list[str]:
    before = fl.snapshot(net)
    do()
    return before.diff(net).paths


class TestHeld:
    def test_to_the_bit_where_theirs_moves(self):
        ours, theirs = Net(), Net(make=lambda net: torch.optim.SGD(net.head.parameters(), lr=0.1, momentum=0.9))
        freeze = Freeze("backbone")
        assert moved_in(ours, lambda: fit(ours, freeze)) == ["head.weight", "head.bias"]
        moved = moved_in(theirs, lambda: fit(theirs, BackboneFinetuning(unfreeze_backbone_at_epoch=9)))
        assert {path for path in moved if path.startswith("backbone")} >= {
            "backbone.1.running_mean",
            "backbone.1.running_var",
            "backbone.1.num_batches_tracked",
        }
        # With train_bn=False they leave a layer that normalizes by its batch, in a frozen part.
        assert freeze.report is not None
        assert freeze.report.moved == ()
        assert len(freeze.report.held) == 21
        # Two epochs, the end, and where it joined.
        assert freeze.report.verified == 4

    def test_affine_moves_in_theirs_when_it_is_in_the_optimizer(self):
        ours, theirs = Net(), Net()
        assert "backbone.1.weight" not in moved_in(ours, lambda: fit(ours, Freeze("backbone")))
        assert "backbone.1.weight" in moved_in(theirs, lambda: fit(theirs, BackboneFinetuning(9)))

    def test_modes_and_flags_come_back_and_hold_in_between(self):
        net = Net()
        net.backbone[3].eval()
        net.backbone[0].bias.requires_grad_(False)
        before = {path: (m.training, dict(vars(m)).get("train")) for path, m in net.named_modules()}
        seen: list[tuple[bool, bool]] = []

        def look(_: Any, module: Any) -> None:
            module.train()
            seen.append((module.backbone.training, module.backbone[1].weight.requires_grad))

        fit(net, Freeze("backbone"), At(on_train_batch_start=look))
        assert set(seen) == {(False, False)}
        assert {path: (m.training, dict(vars(m)).get("train")) for path, m in net.named_modules()} == before
        assert [p.requires_grad for p in net.parameters()] == [True, False, True, True, True, True]

    def test_a_gradient_of_zeros_does_not_move_it(self):
        def plant(_: Any, module: Any) -> None:
            for parameter in module.parameters():
                parameter.grad = torch.ones_like(parameter)

        ours, theirs = Net(), Net()
        planted = At(on_before_optimizer_step=plant)
        assert "backbone.0.weight" not in moved_in(ours, lambda: fit(ours, Freeze("backbone"), planted))
        frozen = At(setup=lambda _, module: module.backbone.requires_grad_(False))
        assert "backbone.0.weight" in moved_in(theirs, lambda: fit(theirs, frozen, planted))

    def test_evaluation_alone_is_left_alone(self):
        net, freeze = Net(), Freeze("backbone")
        made = trainer(freeze)
        moved = moved_in(net, lambda: (made.validate(net, loader(), verbose=False), made.predict(net, loader())))
        assert moved == []
        assert freeze.report is None

    def test_two_fits(self):
        net, freeze = Net(), Freeze("backbone")
        made = trainer(freeze)
        for epochs in (1, 2):
            made.fit_loop.max_epochs = epochs
            assert moved_in(net, lambda: made.fit(net, loader())) == ["head.weight", "head.bias"]
            assert freeze.report is not None
            assert freeze.report.moved == ()
            freeze.report = None

    @pytest.mark.parametrize("level", ["grad", "stats"])
    def test_levels(self, level: str):
        net = Net()
        moved = moved_in(net, lambda: fit(net, Freeze("backbone", level=level)))
        assert ("backbone.1.running_mean" in moved) == (level == "grad")
        assert ("backbone.1.weight" in moved) == (level == "stats")

    def test_a_compiled_module_is_looked_through(self):
        net = Net()
        compiled: Any = torch.compile(net, backend="eager")
        assert moved_in(net, lambda: fit(compiled, Freeze("backbone"), max_epochs=1)) == ["head.weight", "head.bias"]

    def test_a_trainer_of_the_other_package(self):
        other = pytest.importorskip("pytorch_lightning")

        class Theirs(other.LightningModule):
            __init__ = Net.__init__
            forward, training_step, configure_optimizers = Net.forward, Net.training_step, Net.configure_optimizers

        # `super()` of the other class's method does not work in this one.
        net = Theirs.__new__(Theirs)
        other.LightningModule.__init__(net)
        net.backbone, net.head, net._make, net._schedule = Net().backbone, nn.Linear(8, 2), None, None
        freeze = Freeze("backbone", schedule=Unfreeze((Stage(("backbone.0",), Epoch(1)),)))
        made = trainer(freeze, kind=other.Trainer)
        assert not any("backbone.1" in path for path in moved_in(net, lambda: made.fit(net, loader())))
        assert freeze.report is not None
        assert [each.parts for each in freeze.report.unfrozen] == [("backbone.0",)]


class TestMoved:
    def test_it_ends_the_run_and_is_named(self):
        net, freeze = Net(), Freeze("backbone")
        move = At(on_train_batch_end=lambda _, module: module.backbone[1].running_mean.add_(1))
        epochs: list[int] = []
        count = At(on_train_epoch_start=lambda made, _: epochs.append(made.current_epoch))
        with pytest.raises(FrozenStateMoved, match=r"backbone\.1\.running_mean"):
            fit(net, freeze, move, count)
        assert epochs == [0]
        assert freeze.report is not None
        assert freeze.report.moved == ("backbone.1.running_mean",)
        assert net.backbone.training

    def test_at_the_end_or_never(self):
        move = At(on_train_batch_end=lambda _, module: module.backbone[1].running_mean.add_(1))
        end, never = Freeze("backbone", verify="end"), Freeze("backbone", verify="never")
        with pytest.raises(FrozenStateMoved):
            fit(Net(), end, move)
        fit(Net(), never, move)
        assert never.report is not None
        assert never.report.moved == ("backbone.1.running_mean",)
        with pytest.raises(ModelError, match="verify='always'"):
            Freeze("backbone", verify="always")  # type: ignore[arg-type]

    def test_another_error_is_the_one_that_is_seen(self):
        net, freeze = Net(), Freeze("backbone")

        def fail(_: Any, module: Any) -> None:
            module.backbone[1].running_mean.add_(1)
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            fit(net, freeze, At(on_train_batch_end=fail))
        assert freeze.report is None
        assert net.backbone.training
        assert net.backbone[0].weight.requires_grad
        fit(net, freeze)  # and it can begin again
        assert freeze.report is not None


class TestSchedule:
    def test_theirs_and_ours_beside_schedulers(self):
        # A group that is added late is one that these schedulers do not know.
        makers: list[Callable[[Any], Any]] = [
            lambda o: OneCycleLR(o, max_lr=0.1, total_steps=40),
            lambda o: LambdaLR(o, lambda epoch: 0.9**epoch),
        ]
        for make in makers:
            net, freeze = Net(schedule=make), Freeze(schedule=LATER)
            groups: list[int] = []
            count = At(on_train_batch_end=lambda made, _: groups.append(len(made.optimizers[0].param_groups)))  # noqa: B023
            assert "backbone.0.weight" in moved_in(net, lambda: fit(net, freeze, count, max_epochs=3))  # noqa: B023
            assert set(groups) == {1}
            theirs = Net(make=lambda net: torch.optim.SGD(net.head.parameters(), lr=0.1), schedule=make)
            with pytest.raises((ValueError, KeyError)):
                fit(theirs, BackboneFinetuning(1), max_epochs=3)

    @pytest.mark.parametrize("kind", ["epoch", "step", "plateau"])
    def test_when(self, kind: str):
        at = {"epoch": Epoch(2), "step": Step(8), "plateau": Plateau(2, mode="min", min_delta=100.0)}[kind]
        trains: list[bool] = []
        look = At(on_train_batch_start=lambda _, module: trains.append(module.backbone[0].weight.requires_grad))
        freeze = Freeze(schedule=Unfreeze((Stage(("backbone",), at),)), monitor="val_loss")
        fit(Net(), freeze, look, max_epochs=4)
        # Four steps an epoch. The first epoch is better than nothing, and none after it.
        assert trains == [False] * (12 if kind == "plateau" else 8) + [True] * (4 if kind == "plateau" else 8)
        assert freeze.report is not None
        assert [each.parts for each in freeze.report.unfrozen] == [("backbone",)]

    def test_it_is_said_in_one_line(self, caplog: pytest.LogCaptureFixture):
        logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
        with caplog.at_level(logging.INFO):
            fit(Net(), Freeze(schedule=LATER), max_epochs=3)
        said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Freeze")]
        assert said == ["Freeze: in epoch 2 begins to train: backbone"]

    def test_a_function_makes_it(self):
        freeze = Freeze(schedule=lambda net: fl.optim.gradual(net.backbone, every=Epoch(1), head="3"))
        with pytest.raises((ModelError, NothingSelected)):
            fit(Net(), freeze)
        freeze = Freeze(schedule=lambda net: LATER)
        fit(Net(), freeze, max_epochs=3)
        assert freeze.report is not None
        assert len(freeze.report.unfrozen) == 1

    def test_what_the_optimizer_lacks_is_named(self):
        net = Net(make=lambda net: torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1))
        with pytest.raises(ModelError, match=r"does not hold what will be unfrozen: backbone\.0\.weight"):
            fit(net, Freeze(schedule=LATER))

    def test_a_plateau_needs_a_metric(self):
        waits = Unfreeze((Stage(("backbone",), Plateau(2)),))
        with pytest.raises(ModelError, match="no metric was named"):
            fit(Net(), Freeze(schedule=waits))
        with pytest.raises(ModelError, match=r"monitor='accuracy'.*\n.*found: val_loss"):
            fit(Net(), Freeze(schedule=waits, monitor="accuracy"))

    def test_a_strategy_that_lays_parameters_together_is_refused(self, monkeypatch: pytest.MonkeyPatch):
        class FSDPStrategy:
            pass

        made = trainer(Freeze(schedule=LATER))
        freeze = made.callbacks[0]
        monkeypatch.setattr(type(made), "strategy", property(lambda _: FSDPStrategy()))
        net = Net()
        with pytest.raises(CannotThaw, match="FSDPStrategy lays parameters together"):
            freeze.setup(made, net, "fit")
        assert net.backbone.training

    def test_several_optimizers(self):
        both = Net(make=lambda net: [torch.optim.SGD(net.parameters(), lr=0.1)] * 2)
        both.automatic_optimization = False
        with pytest.raises(ModelError, match="for each"):
            fit(both, Freeze(schedule=LATER))


class TestCheckpoints:
    @pytest.mark.parametrize("after", [0, 1, 2])
    def test_a_run_that_resumes_ends_like_one_that_went_through(self, tmp_path: Path, after: int):
        def run(net: Net, ckpt: Any = None) -> None:
            saved = [ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)] if ckpt is None else []
            freeze = Freeze(
                "backbone.0", "backbone.3", schedule=Unfreeze((Stage(("backbone.1",), Epoch(2), warmup=4),))
            )
            fit(net, freeze, *saved, ckpt_path=ckpt, max_epochs=4, enable_checkpointing=bool(saved))

        def groups(net: Net) -> torch.optim.Optimizer:
            parts = (net.backbone[0], net.backbone[1], net.head)
            return torch.optim.Adam([{"params": list(part.parameters())} for part in parts], lr=0.01)

        whole, resumed = Net(groups), Net(groups)
        run(whole)
        with torch.no_grad():
            resumed.backbone[0].weight.zero_()  # the checkpoint has what was held
        torch.manual_seed(after)
        run(resumed, tmp_path / f"epoch={after}.ckpt")
        assert not fl.snapshot(whole).diff(resumed)

    def test_another_schedule_or_selection_is_refused(self, tmp_path: Path):
        saved = ModelCheckpoint(tmp_path, save_last=True)
        fit(Net(), Freeze("backbone.0", schedule=LATER_1), saved, max_epochs=1, enable_checkpointing=True)
        last = tmp_path / "last.ckpt"
        other = Unfreeze((Stage(("backbone.1",), Epoch(3)),))
        with pytest.raises(ModelError, match="of another schedule"):
            fit(Net(), Freeze("backbone.0", schedule=other), ckpt_path=last)
        with pytest.raises(
            CannotFreeze, match=r"Freeze\[backbone\.3\]: the checkpoint is of a run with Freeze\[backbone\.0\]"
        ):
            fit(Net(), Freeze("backbone.3", schedule=LATER_1), ckpt_path=last)

    def test_a_checkpoint_of_a_run_without_it(self, tmp_path: Path):
        saved = ModelCheckpoint(tmp_path, save_last=True)
        before = Net()
        fit(before, saved, max_epochs=2, enable_checkpointing=True)
        net, freeze = Net(), Freeze(schedule=Unfreeze((Stage(("backbone",), Epoch(3)),)))
        trains: list[bool] = []
        look = At(on_train_epoch_end=lambda _, module: trains.append(module.backbone[0].weight.requires_grad))
        fit(net, freeze, look, ckpt_path=tmp_path / "last.ckpt", max_epochs=4)
        # Epochs are the trainer's.
        assert trains == [False, True]

    def test_evaluating_a_checkpoint_holds_nothing(self, tmp_path: Path):
        saved = ModelCheckpoint(tmp_path, save_last=True)
        fit(Net(), Freeze("backbone"), saved, enable_checkpointing=True)
        net = Net()
        trainer(Freeze("backbone")).validate(net, loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
        assert net.backbone[0].weight.requires_grad
        assert net.backbone.training

    def test_several_in_one_trainer(self, tmp_path: Path):
        saved = ModelCheckpoint(tmp_path, save_last=True)
        two = Freeze("backbone.0"), Freeze(nn.BatchNorm1d, level="stats")
        net = Net()
        moved = moved_in(net, lambda: fit(net, *two, saved, enable_checkpointing=True))
        assert set(moved) == {"backbone.1.weight", "backbone.1.bias", "head.weight", "head.bias"}
        keys = torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]
        assert [key for key in keys if key.startswith("Freeze")] == ["Freeze[backbone.0]", "Freeze[BatchNorm1d]"]


LATER_1 = Unfreeze((Stage(("backbone.1",), Epoch(1)),))


class TestBadInput:
    def test_what_the_module_does_not_have(self):
        net = Net()
        with pytest.raises(NothingSelected, match="backbone"):
            fit(net, Freeze("backbon"))
        assert not fl.freezing.holds_on(net)
        with pytest.raises(CannotFreeze, match="nothing was named"):
            Freeze()

    def test_what_is_made_later_is_said(self):
        class Late(Net):
            def configure_model(self) -> None:
                self.late = nn.Linear(2, 2)

        with pytest.raises(NothingSelected, match=r"what Late\.configure_model makes is not there yet"):
            fit(Late(), Freeze("late"))

    def test_a_strategy_that_converts_the_model(self):
        net = Net()

        def look(_: Any, module: Any) -> None:
            assert module.backbone[0].weight.dtype == torch.float64

        freeze = Freeze("backbone")
        inputs = DataLoader([(x.double(), y) for x, y in loader(1).dataset], batch_size=8)
        with pytest.warns(HeldAnew, match=r"re-created.*\n.*other values|re-created"):
            trainer(freeze, At(on_train_batch_end=look), precision="64-true").fit(net, inputs)
        assert freeze.report is not None
        assert freeze.report.moved == ()
        assert "backbone.1.running_mean" in freeze.report.anew

    def test_parameters_that_are_re_created_are_named_and_held_again(self):
        def recreate(_: Any, module: Any) -> None:
            module.backbone[0].weight = nn.Parameter(module.backbone[0].weight.detach().clone())

        net, freeze = Net(), Freeze("backbone")
        with pytest.warns(HeldAnew, match="1 held parameters were re-created"):
            moved = moved_in(net, lambda: fit(net, At(on_fit_start=recreate), freeze))
        assert "backbone.0.weight" not in moved
        assert freeze.report is not None
        assert freeze.report.anew == ("backbone.0.weight",)


class TestBesideOthers:
    @pytest.mark.parametrize("ours_first", [True, False])
    @pytest.mark.parametrize("kind", ["swa", "ema"])
    def test_averaging(self, kind: str, ours_first: bool, tmp_path: Path):
        def averaging() -> Callback:
            if kind == "swa":
                return StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)
            return EMAWeightAveraging(decay=0.9)

        saved = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=3)
        net, freeze = Net(), Freeze("backbone")
        before = fl.snapshot(net, "backbone")
        inside: list[list[str]] = []
        look = At(on_validation_batch_end=lambda _, module: inside.append(before.diff(module).paths))
        both = (freeze, averaging()) if ours_first else (averaging(), freeze)
        fit(net, *both, look, saved, enable_checkpointing=True, max_epochs=3)
        assert freeze.report is not None
        assert freeze.report.moved == ()
        assert not before.diff(net)
        # Held modules are locked in eval mode during the run, and the flags with them.
        assert {path.rpartition(".")[2] for paths in inside for path in paths} <= {"training", "requires_grad"}
        kept = Net()
        kept.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"])
        assert not before.diff(kept)

        # By hand it does move.
        naive = Net()
        hold = fl.freeze(naive, "backbone")
        fit(naive, averaging(), max_epochs=3)
        assert hold.diff().moved

    def test_early_stopping(self):
        freeze = Freeze("backbone")
        made = fit(Net(), freeze, EarlyStopping("val_loss", patience=1, min_delta=100.0), max_epochs=9)
        assert made.current_epoch < 9
        assert freeze.report is not None
        assert freeze.report.moved == ()


class TestReport:
    def test_it_is_written(self, tmp_path: Path):
        freeze = Freeze("backbone", report="out/freeze.json")
        fit(Net(), freeze, default_root_dir=tmp_path)
        written = json.loads((tmp_path / "out" / "freeze.json").read_text())
        assert freeze.report is not None
        assert written == json.loads(json.dumps(freeze.report.to_json()))
        fit(Net(), Freeze("backbone", report=tmp_path / "other.json"), default_root_dir=tmp_path / "elsewhere")
        assert (tmp_path / "other.json").exists()

    def test_none_is_written_unasked(self, tmp_path: Path):
        fit(Net(), Freeze("backbone"), default_root_dir=tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_copy_of_the_callback_can_be_made():
    assert deepcopy(Freeze("backbone", schedule=LATER)).state_key == "Freeze[backbone]"
    assert isinstance(Net(), LightningModule)
