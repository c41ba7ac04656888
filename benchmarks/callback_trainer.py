"""Do the callbacks slow the Trainer of transformers down? A step of `train` with them against one without any callback.

`Freeze` holds all but the head, which the other side has frozen by hand, in a way that withstands the Trainer's
`model.train()` at every step: so both sides compute the same. `Doctor` is timed after its steps are over. A training is
begun for each side of a round, in turn; its steps are timed from inside, so that what happens once (freezing,
verifying, the report) is not counted. What the callbacks add is also measured on a net whose forward pass takes next to
nothing, and given as a share of a step of ResNet-18: half a percent of that step is noise on most machines.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measure import Comparison, Side, compare, resnet, rounds_asked_for, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from frostline.compat import import_torchvision

    import_torchvision()
    # isort: split
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from frostline.integrations.transformers import Doctor, Freeze

from frostline.optim import Epoch, Stage, Unfreeze

GOAL = 1.005
BATCH, PIXELS = 8, 96
STEPS, SMALL_STEPS = 10, 150
DOCTOR_STEPS = 2


class Timed(nn.Module):
    """Gives the loss that the Trainer asks for, and takes down when its steps begin."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.began: list[float] = []

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.began.append(time.perf_counter())
        return {"loss": cross_entropy(self.net(images), labels)}


@dataclass(frozen=True)
class TrainSide(Side):
    """The time of a step within a training; the first ones are left out."""

    train: Callable[[], list[float]] = list
    skip: int = DOCTOR_STEPS + 1

    def seconds(self) -> float:
        self.prepare()
        began = self.train()[self.skip :]
        return (began[-1] - began[0]) / (len(began) - 1)


class Trainings:
    """A model that is trained with callbacks or without."""

    def __init__(self, net: nn.Module, head: str, images: Tensor, steps: int) -> None:
        self.model, self.head = Timed(net), head
        self.rows = [{"images": image, "labels": n % 10} for n, image in enumerate(images)]
        self.steps = steps + DOCTOR_STEPS + 2

    def free(self) -> None:
        for part in self.model.net.children():
            part.__dict__.pop("train", None)
        self.model.train()
        self.model.requires_grad_(True)

    def by_hand(self) -> None:
        self.free()
        for name, part in self.model.net.named_children():
            if name != self.head:
                part.requires_grad_(False)
                part.eval()
                part.train = lambda *_, part=part: part

    def train(self, *callbacks: Any) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                folder,
                max_steps=self.steps,
                per_device_train_batch_size=len(self.rows),
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                logging_strategy="no",
                remove_unused_columns=False,
            )
            # One epoch, in which each batch has all rows.
            data = [row for _ in range(self.steps) for row in self.rows]
            trainer = Trainer(self.model, settings, train_dataset=data, callbacks=list(callbacks))
            trainer.remove_callback(PrinterCallback)
            self.model.began = []
            trainer.train()
        return self.model.began

    def side(self, name: str, prepare: Callable[[], None], *make: Callable[[], Any]) -> Side:
        return TrainSide(name, lambda: None, prepare, train=lambda: self.train(*(callback() for callback in make)))


def small_net() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), nn.Linear(8, 10))


def comparisons(name: str, trainings: Trainings, *, rounds: int, goal: float | None) -> list[Comparison]:
    head = f"net.{trainings.head}"
    parts = ("net", f"!{head}")
    waiting = Unfreeze((Stage(parts, Epoch(99)),))
    hand = trainings.side("no callback, frozen by hand", trainings.by_hand)
    sides = [
        trainings.side("Freeze", trainings.free, lambda: Freeze(*parts)),
        trainings.side("Freeze, with a schedule", trainings.free, lambda: Freeze(schedule=waiting)),
        trainings.side("Doctor, over", trainings.by_hand, lambda: Doctor(steps=DOCTOR_STEPS)),
    ]
    return [
        compare(f"step of Trainer.train, {name}: {side.name} / by hand", side, hand, rounds=rounds, goal=goal)
        for side in sides
    ]


def main() -> None:
    rounds = rounds_asked_for(9)
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, PIXELS, PIXELS)
    large = Trainings(resnet("resnet18", images), "fc", images, STEPS)
    tiny = Trainings(small_net(), "1", torch.randn(4, 8), SMALL_STEPS)
    whole = comparisons("ResNet-18", large, rounds=rounds, goal=GOAL)
    small = comparisons("tiny net", tiny, rounds=rounds, goal=None)
    shares = {
        each.side: (each.side_seconds - each.baseline_seconds) / step.baseline_seconds
        for step, each in zip(whole, small, strict=True)
    }
    for name, share in shares.items():
        print(f"added to a step of ResNet-18 by {name}: {share:.4%}", flush=True)
    settings = {"batch": BATCH, "pixels": PIXELS, "rounds": rounds, "steps": STEPS, "small_steps": SMALL_STEPS}
    write("callback_trainer", {**settings, "added_share_of_a_step": shares}, [*whole, *small])


if __name__ == "__main__":
    main()
