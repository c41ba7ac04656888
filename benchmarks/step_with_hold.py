"""Does a hold slow training down? One step with a held trunk against the same step frozen by hand.

Both sides call `model.train()` once a step, as a loop does that validates in between. The one has called
`fl.freeze(model, "*", "!fc*", optimizer=optimizer)` before; the other has set `requires_grad_(False)` and puts the
trunk back into eval mode after each `train()`. Both train `fc` with the same optimizer over all parameters. They take
turns on one model, so that both find its tensors at the same addresses.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from measure import Comparison, Side, compare, resnet, rounds_asked_for, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import frostline as fl
from frostline.freezing import Hold

GOAL = 1.01
BATCH, PIXELS = 16, 224
SMALL_BATCH = 64


class Steps:
    """A model whose `fc` trains, with the rest frozen in one of two ways."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images
        self.labels = torch.randint(0, 10, (len(images),))
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.trunk = [child for name, child in model.named_children() if name != "fc"]
        self.hold: Hold | None = None
        # Steps of the whole model first: they make the machine hand over the memory that later steps would wait for.
        for _ in range(3):
            self.step_held()

    def by_hand(self) -> None:
        self._free()
        for part in self.trunk:
            part.requires_grad_(False)
        self.step_by_hand()

    def by_hold(self) -> None:
        self._free()
        self.hold = fl.freeze(self.model, "*", "!fc*", optimizer=self.optimizer)
        self.step_held()

    def step_held(self) -> None:
        self.model.train()
        self._forward_and_backward()
        self.optimizer.step()

    def step_by_hand(self) -> None:
        self.model.train()
        for part in self.trunk:
            part.eval()
        self._forward_and_backward()
        self.optimizer.step()

    def rest_held(self) -> None:
        self.model.train()
        self.optimizer.step()

    def rest_by_hand(self) -> None:
        self.model.train()
        for part in self.trunk:
            part.eval()
        self.optimizer.step()

    def _free(self) -> None:
        if self.hold is not None:
            self.hold.thaw()
            self.hold = None
        self.model.requires_grad_(True)

    def _forward_and_backward(self) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.model(self.images), self.labels).backward()


def small_model() -> nn.Module:
    """As large as what learns the 8 x 8 digits; a step takes so little that the calls around it count."""

    def block(channels: int, to: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, to, 3, padding=1), nn.BatchNorm2d(to), nn.ReLU(), nn.MaxPool2d(2))

    trunk = nn.Sequential(block(1, 32), block(32, 64), nn.Flatten(), nn.Dropout(0.2))
    return nn.Sequential(OrderedDict(trunk=trunk, fc=nn.Linear(256, 10)))


def compare_steps(name: str, steps: Steps, *, rounds: int, repeats: int, goal: float | None) -> list[Comparison]:
    held, hand = "fl.freeze(..., optimizer=)", "requires_grad_(False), eval() after each train()"
    whole = compare(
        f"step, {name}: held / by hand",
        Side(held, steps.step_held, steps.by_hold, repeats),
        Side(hand, steps.step_by_hand, steps.by_hand, repeats),
        rounds=rounds,
        goal=goal,
    )
    rest = compare(
        f"step without forward and backward, {name}: held / by hand",
        Side(held, steps.rest_held, steps.by_hold, 50),
        Side(hand, steps.rest_by_hand, steps.by_hand, 50),
        rounds=rounds // 2,
        goal=None,
    )
    return [whole, rest]


def main() -> None:
    rounds = rounds_asked_for(41)
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, PIXELS, PIXELS)
    large = Steps(resnet("resnet50", images), images)
    small = Steps(small_model(), torch.randn(SMALL_BATCH, 1, 8, 8))
    results = compare_steps("ResNet-50", large, rounds=rounds, repeats=1, goal=GOAL)
    results += compare_steps("digits CNN", small, rounds=rounds, repeats=100, goal=None)
    write("step_with_hold", {"batch": BATCH, "pixels": PIXELS, "small_batch": SMALL_BATCH, "rounds": rounds}, results)


if __name__ == "__main__":
    main()
