"""Do the callbacks slow Lightning down? A step of `Trainer.fit` with them against one without any callback.

`Freeze` holds all but the head, which the other side has frozen by hand; `Doctor` is timed after its steps are over. A
fit is begun for each side of a round, in turn; its steps are timed from inside, without the first ones, so that what
happens once (freezing, verifying, the report) is not counted. Time is the processor's, in one thread: neighbours
disturb it less. Half a percent of a step is noise all the same: what is added is also measured on a net whose forward
pass takes next to nothing, and given as a share of a step of ResNet-18.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from measure import Comparison, Side, compare, resnet, rounds_asked_for, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from frostline.integrations.lightning import Doctor, Freeze

    # isort: split
    from lightning.pytorch import LightningModule, Trainer

GOAL = 1.005
BATCH, PIXELS = 16, 64
STEPS, SMALL_STEPS = 12, 200
DOCTOR_STEPS = 2


class Timed(LightningModule):
    """Trains the head of a net on one batch, and takes down when its steps begin."""

    def __init__(self, net: nn.Module, head: str) -> None:
        super().__init__()
        self.net, self.head = net, head
        self.began: list[float] = []

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        self.began.append(time.process_time())
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


@dataclass(frozen=True)
class FitSide(Side):
    """The median time of the steps of a fit; the first ones are left out."""

    fit: Callable[[], list[float]] = list
    skip: int = DOCTOR_STEPS + 1

    def seconds(self) -> float:
        self.prepare()
        began = self.fit()[self.skip :]
        return statistics.median(after - before for before, after in pairwise(began))


class Fits:
    """A model that is fitted with callbacks or without."""

    def __init__(self, net: nn.Module, head: str, images: Tensor, steps: int) -> None:
        self.model, self.head = Timed(net, head), head
        batch = (images, torch.randint(0, 10, (len(images),)))
        self.batches = DataLoader([batch] * (steps + DOCTOR_STEPS + 2), batch_size=None)

    def free(self) -> None:
        self.model.train()
        self.model.requires_grad_(True)

    def by_hand(self) -> None:
        self.free()
        for name, part in self.model.net.named_children():
            if name != self.head:
                part.requires_grad_(False)
                part.eval()

    def fit(self, *callbacks: Any) -> list[float]:
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        trainer = Trainer(
            accelerator="cpu", devices=1, max_epochs=1, callbacks=list(callbacks), **dict.fromkeys(off, False)
        )
        self.model.began = []
        trainer.fit(self.model, self.batches)
        return self.model.began

    def side(self, name: str, prepare: Callable[[], None], *make: Callable[[], Any]) -> Side:
        return FitSide(name, lambda: None, prepare, fit=lambda: self.fit(*(callback() for callback in make)))

    def freeze(self) -> Side:
        return self.side("Freeze", self.free, lambda: Freeze("net", f"!net.{self.head}"))

    def doctor(self) -> Side:
        return self.side("Doctor, over", self.by_hand, lambda: Doctor(steps=DOCTOR_STEPS))


def small_net() -> nn.Module:
    trunk = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    return nn.Sequential(trunk, nn.Linear(8, 10))


def main() -> None:
    rounds = rounds_asked_for(21)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    images = torch.randn(BATCH, 3, PIXELS, PIXELS)
    large = Fits(resnet("resnet18", images), "fc", images, STEPS)
    small = Fits(small_net(), "1", torch.randn(4, 8), SMALL_STEPS)
    whole = compared("ResNet-18", large, large.freeze(), rounds=rounds, goal=GOAL)
    tiny = [compared("tiny net", small, side, rounds=rounds, goal=None) for side in (small.freeze(), small.doctor())]
    shares = {each.side: (each.side_seconds - each.baseline_seconds) / whole.baseline_seconds for each in tiny}
    for name, share in shares.items():
        print(f"added to a step of ResNet-18 by {name}: {share:.4%}", flush=True)
    settings = {"batch": BATCH, "pixels": PIXELS, "rounds": rounds, "steps": STEPS, "small_steps": SMALL_STEPS}
    write("callback_lightning", {**settings, "added_share_of_a_step": shares}, [whole, *tiny])


def compared(name: str, fits: Fits, side: Side, *, rounds: int, goal: float | None) -> Comparison:
    hand = fits.side("no callback, frozen by hand", fits.by_hand)
    return compare(f"step of Trainer.fit, {name}: {side.name} / by hand", side, hand, rounds=rounds, goal=goal)


if __name__ == "__main__":
    main()
