"""Does a schedule slow training down? A step of ResNet-18 under a schedule against the same step without one.

Twice: while a part is held, against the same part frozen by hand (flags off, and back into eval mode after each
`train()`); and while every group of the trunk warms up, which is the most that a schedule ever does in a step, against
plain training. Both sides take turns on one model with one optimizer, so that both find its tensors at the same
addresses.

A step takes so much longer than what a schedule does in it that their ratio is noise on a machine with neighbours. The
call of `optimizer.step()` is therefore also timed where no parameter has a gradient, and what the schedule adds to that
is given as a share of a training step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measure import Comparison, Side, compare, resnet, rounds_asked_for, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from frostline.optim import Epoch, Unfreezing, gradual, param_groups

GOAL = 1.005
BATCH, PIXELS = 16, 224
# So many steps that what warms up does so to the end of the measurement.
LONG = 10**6
SCHEDULE = "Unfreezing(gradual(...))"


class Steps:
    """A model of which a part is held, or warms up, or neither."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images
        self.labels = torch.randint(0, 10, (len(images),))
        groups = param_groups(model, 1e-4, layer_decay=1.0, weight_decay=1e-4)
        self.optimizer = torch.optim.SGD(groups, momentum=0.9)
        self.schedule = gradual(model, every=Epoch(1), layers=2, warmup=LONG)
        self.held = [model.get_submodule(str(path)) for stage in self.schedule.stages[1:] for path in stage.parts]
        self.unfreezing: Unfreezing | None = None
        # Steps of the whole model first: they make the machine hand over the memory that later steps would wait for.
        for _ in range(3):
            self.step()

    def plain(self) -> None:
        if self.unfreezing is not None:
            self.unfreezing.detach()
            if self.unfreezing.hold is not None:
                self.unfreezing.hold.thaw()
            self.unfreezing = None
        self.model.requires_grad_(True)

    def by_hand(self) -> None:
        self.plain()
        for part in self.held:
            part.requires_grad_(False)
            part.eval()

    def by_schedule(self) -> None:
        """The head and the first stage train, the latter in its warm-up."""
        self._begin(1)

    def all_warming(self) -> None:
        self._begin(len(self.schedule.stages))

    def settle(self, begin: Callable[[], None]) -> None:
        """One step that is not timed, so that both sides find memory as they will leave it."""
        begin()
        self.step_by_hand() if begin == self.by_hand else self.step()

    def empty(self, begin: Callable[[], None]) -> None:
        begin()
        self.optimizer.zero_grad()

    def step(self) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()

    def step_by_hand(self) -> None:
        self.model.train()
        for part in self.held:
            part.eval()
        self.optimizer.zero_grad()
        cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()

    def rest(self) -> None:
        """Nothing has a gradient: what is left is the loop over parameters, and what the schedule does around it."""
        self.optimizer.step()

    def _begin(self, stages: int) -> None:
        self.plain()
        self.unfreezing = Unfreezing(self.schedule, self.model, self.optimizer)
        for _ in range(stages):
            self.unfreezing.epoch_end()


def main() -> None:
    rounds = rounds_asked_for(41)
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, PIXELS, PIXELS)
    steps = Steps(resnet("resnet18", images), images)
    hand = "requires_grad_(False), eval() after each train()"
    cases = {
        "a part is held": (steps.by_schedule, steps.by_hand, steps.step_by_hand, hand),
        "all warms up": (steps.all_warming, steps.plain, steps.step, "no schedule"),
    }
    results: list[Comparison] = []
    shares: dict[str, float] = {}
    for name, (begin, begin_without, step_without, without) in cases.items():
        whole = compare(
            f"step, {name}: schedule / without",
            Side(SCHEDULE, steps.step, lambda begin=begin: steps.settle(begin)),
            Side(without, step_without, lambda begin=begin_without: steps.settle(begin)),
            rounds=rounds,
            goal=GOAL,
        )
        call = compare(
            f"optimizer.step() without gradients, {name}: schedule / without",
            Side(SCHEDULE, steps.rest, lambda begin=begin: steps.empty(begin), 1000),
            Side(without, steps.rest, lambda begin=begin_without: steps.empty(begin), 1000),
            rounds=rounds,
            goal=None,
        )
        shares[name] = (call.side_seconds - call.baseline_seconds) / whole.baseline_seconds
        print(f"added to a step, {name}: {shares[name]:.4%}", flush=True)
        results += [whole, call]
    settings = {"batch": BATCH, "pixels": PIXELS, "rounds": rounds, "groups": len(steps.optimizer.param_groups)}
    write("unfreezing_step", {**settings, "added_share_of_a_step": shares}, results)


if __name__ == "__main__":
    main()
