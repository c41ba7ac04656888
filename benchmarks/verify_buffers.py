"""What does a proof cost? `hold.verify` on a ResNet-50 whose trunk is held, against one of its training steps.

Measured against the step of the held model, where only `fc` has a backward pass, and against the step of the whole
model in training. `verify` is timed right after a step, with the caches as the step leaves them.
"""

from __future__ import annotations

import torch
from measure import Comparison, Side, compare, resnet, rounds_asked_for, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import frostline as fl
from frostline.freezing import Hold

GOAL = 0.01
BATCH, PIXELS = 16, 224


class Job:
    """A ResNet-50 in training, with the trunk held or not."""

    def __init__(self) -> None:
        self.images: Tensor = torch.randn(BATCH, 3, PIXELS, PIXELS)
        self.labels = torch.randint(0, 1000, (BATCH,))
        self.model: nn.Module = resnet("resnet50", self.images)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        self.hold = self._freeze()

    def _freeze(self) -> Hold:
        return fl.freeze(self.model, "*", "!fc*", optimizer=self.optimizer)

    def step(self) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()

    def thaw(self) -> None:
        self.hold.thaw()

    def freeze_and_step(self) -> None:
        """Hold the trunk as the whole step has left it."""
        if self.hold.released:
            self.hold = self._freeze()
        self.step()

    def verify_buffers(self) -> None:
        self.hold.verify("buffers")

    def verify_everything(self) -> None:
        self.hold.verify()


def main() -> None:
    rounds = rounds_asked_for(15)
    torch.manual_seed(0)
    job = Job()
    held = Side("a step with the trunk held", job.step, job.freeze_and_step)
    whole = Side("a step of the whole model", job.step, job.thaw)
    buffers = Side('hold.verify("buffers")', job.verify_buffers, job.freeze_and_step)
    everything = Side("hold.verify()", job.verify_everything, job.freeze_and_step)

    def against(side: Side, step: Side, goal: float | None) -> Comparison:
        name = f"{side.name.removeprefix('hold.')}, ResNet-50: / {step.name.removeprefix('a ')}"
        return compare(name, side, step, rounds=rounds, goal=goal)

    results = [
        # The whole step first: it makes the machine hand over the memory that a held step would wait for.
        against(buffers, whole, GOAL),
        against(everything, whole, None),
        against(buffers, held, GOAL),
        against(everything, held, None),
    ]
    write("verify_buffers", {"batch": BATCH, "pixels": PIXELS, "rounds": rounds}, results)


if __name__ == "__main__":
    main()
