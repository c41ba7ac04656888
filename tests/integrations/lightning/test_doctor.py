"""Doctor in a Trainer: mistakes that a user makes in a LightningModule are found, what Lightning does is none."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning_nets import LIGHTNINGS_OWN, At, Net, fit, loader, trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout
from torch.optim.lr_scheduler import StepLR

import frostline as fl
from frostline.audit import Contract
from frostline.errors import FindingsFound, ModelError
from frostline.findings import Severity
from frostline.integrations.lightning import Doctor, Freeze
from frostline.optim import Epoch, Stage, Unfreeze

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(message) for message in LIGHTNINGS_OWN)]


def head_only(net: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.head.parameters(), lr=0.1)


class FrozenByFlag(Net):
    """The mistake that Lightning's users make: no gradients, and the rest moves."""

    def __init__(self) -> None:
        super().__init__(head_only)
        self.backbone.requires_grad_(False)


class FrozenByHand(FrozenByFlag):
    def on_train_epoch_start(self) -> None:
        self.backbone.eval()


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        return loss


class AlwaysDrops(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(dropout(self.backbone(inputs), 0.5))


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.forgotten = nn.Linear(8, 2)


class StaysInEval(Net):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        with torch.no_grad():
            self.backbone(batch[0])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 1:
            self.eval()
            with torch.no_grad():
                cross_entropy(self(batch[0]), batch[1])
        return loss


def examined(net: Net, *callbacks: Any, steps: int = 8, **settings: Any) -> Any:
    doctor = Doctor(steps=steps)
    fit(net, doctor, *callbacks, **settings)
    assert doctor.examination is not None
    return doctor.examination


def told(examination: Any) -> list[tuple[str, str]]:
    return [(f.code, f.severity.value) for f in examination if f.severity is not Severity.INFO]


LATER = Unfreeze((Stage(("backbone",), Epoch(1)),))
RIGHT: dict[str, Callable[[], Any]] = {
    "plain": lambda: examined(Net()),
    "held": lambda: examined(Net(), Freeze("backbone")),
    "held in part": lambda: examined(Net(), Freeze("backbone.1", level="stats")),
    "unfrozen": lambda: examined(Net(), Freeze(schedule=LATER)),
    "frozen by hand": lambda: examined(FrozenByHand()),
    "accumulated": lambda: examined(Net(), accumulate_grad_batches=2),
    "manual": lambda: examined(Manual()),
    "clipped": lambda: examined(Net(), gradient_clip_val=0.5),
    "scheduled": lambda: examined(Net(schedule=lambda o: StepLR(o, 1))),
    "mixed precision": lambda: examined(Net(), precision="bf16-mixed"),
    "validated often": lambda: examined(Net(), val_check_interval=2, num_sanity_val_steps=2),
    "validated without inference mode": lambda: examined(Net(), inference_mode=False),
}


@pytest.mark.parametrize("name", RIGHT)
def test_no_false_alarm(name: str):
    assert told(RIGHT[name]()) == []


WRONG: dict[str, tuple[Callable[[], Net], list[tuple[str, str]]]] = {
    "frozen by flag": (FrozenByFlag, [("F107", "error"), ("M207", "warning")]),
    "missing in the optimizer": (
        lambda: Net(lambda net: torch.optim.SGD(net.backbone.parameters(), lr=0.1)),
        [("O412", "warning")],
    ),
    "dropout that has no mode": (AlwaysDrops, [("M205", "error")]),
    "stays in eval": (StaysInEval, [("M202", "error")]),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_found(name: str):
    make, expected = WRONG[name]
    assert told(examined(make())) == expected


def test_lightnings_lines_are_not_taken_for_the_users():
    found = next(f for f in examined(FrozenByFlag()) if f.code == "F107")
    assert "site-packages" not in str(found)
    assert "lightning_nets.py" in str(found)


class TestWatch:
    def test_it_is_off_after_its_steps_and_changes_nothing(self):
        plain, watched = Net(), Net()
        train = nn.Module.train
        during: list[bool] = []
        look = At(on_train_batch_start=lambda _, module: during.append(nn.Module.train is train))
        torch.manual_seed(1)
        fit(plain)
        torch.manual_seed(1)
        doctor = Doctor(steps=3)
        fit(watched, doctor, look)
        assert not fl.snapshot(plain).diff(watched)
        assert during == [False] * 3 + [True] * 5
        assert doctor.examination is not None

    def test_a_fit_that_is_shorter(self):
        doctor = Doctor(steps=100)
        fit(FrozenByFlag(), doctor)
        assert doctor.examination is not None
        assert "F107" in [f.code for f in doctor.examination]
        assert nn.Module.train.__module__ == "torch.nn.modules.module"

    def test_a_fit_that_fails(self):
        doctor = Doctor(steps=100)

        def fail(_: Any, __: Any) -> None:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            fit(FrozenByFlag(), doctor, At(on_train_epoch_end=fail))
        assert doctor.examination is not None
        assert nn.Module.train.__module__ == "torch.nn.modules.module"

    def test_what_is_bad_enough_ends_the_fit(self):
        doctor = Doctor(steps=4, fail_on="error")
        with pytest.raises(FindingsFound, match="F107"):
            fit(FrozenByFlag(), doctor)
        made = fit(Net(), Doctor(steps=4, fail_on="error"))
        assert made.current_epoch == 2
        with pytest.raises(ModelError, match="fail_on='bad'"):
            Doctor(fail_on="bad")  # type: ignore[arg-type]

    def test_a_contract(self):
        doctor = Doctor(steps=4, contract=Contract(frozen=("backbone",)))
        fit(Net(), doctor)
        assert doctor.examination is not None
        assert {f.code for f in doctor.examination if f.severity is Severity.ERROR}

    def test_steps_are_those_of_the_optimizer(self):
        doctor = Doctor(steps=3)
        fit(Net(), doctor, accumulate_grad_batches=2, max_epochs=3)
        assert "3 steps" in str(doctor.examination)

    def test_two_fits(self):
        doctor = Doctor(steps=2)
        made = trainer(doctor, max_epochs=1)
        net = FrozenByFlag()
        made.fit(net, loader())
        first = doctor.examination
        made.fit_loop.max_epochs = 2
        made.fit(net, loader())
        assert first is not None
        assert doctor.examination is not first

    def test_it_is_said_and_written(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
        with caplog.at_level(logging.INFO):
            doctor = Doctor(steps=3, report="doctor.json")
            fit(FrozenByFlag(), doctor, default_root_dir=tmp_path)
        assert str(doctor.examination) in [record.getMessage() for record in caplog.records]
        written = json.loads((tmp_path / "doctor.json").read_text())
        assert doctor.examination is not None
        assert written == json.loads(json.dumps(doctor.examination.to_json()))


def test_evaluation_is_not_watched():
    doctor = Doctor()
    made: Trainer = trainer(doctor)
    made.validate(Net(), loader(), verbose=False)
    assert doctor.examination is None
