"""Does a statistics policy slow a model down? ResNets under a policy that means what PyTorch does, against none.

`set_policy` is asked for what the layers do anyway (the batch with an update by momentum 0.1 in train mode, the running
statistics in eval mode), so that the two sides compute the same, to the bit; `step_commit` replaces the update by
staging. A train step is forward, backward and a step of SGD. Both sides take turns on one model, so that both find its
tensors at the same addresses.
"""

from __future__ import annotations

import torch
from measure import Comparison, Side, compare, resnet, rounds_asked_for, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from frostline.norms import EMA, StatsPolicy
from frostline.norms.policed import PolicyHandle, set_policy
from frostline.norms.step_commit import StepCommit, step_commit

EVAL_GOAL, TRAIN_GOAL = 1.01, 1.05
BATCH, PIXELS = 16, 224


class Passes:
    """A model that runs as it is, under a policy, or with its statistics committed once per step."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images
        self.labels = torch.randint(0, 10, (len(images),))
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        self.handle: PolicyHandle | StepCommit | None = None
        # Steps first: they make the machine hand over the memory that later ones would wait for.
        for _ in range(2):
            self.train_step()

    def stock(self) -> None:
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    def policed(self) -> None:
        self.stock()
        self.handle = set_policy(self.model, train=StatsPolicy("batch", EMA(0.1)), eval=StatsPolicy("running"))

    def committed(self) -> None:
        self.stock()
        self.handle = step_commit(self.model, self.optimizer)

    @torch.no_grad()
    def eval_pass(self) -> None:
        self.model.eval()
        self.model(self.images)

    def train_step(self) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()


def compare_all(name: str, passes: Passes, rounds: int) -> list[Comparison]:
    cases = [
        ("eval pass", "set_policy", passes.eval_pass, passes.policed, EVAL_GOAL),
        ("train step", "set_policy", passes.train_step, passes.policed, TRAIN_GOAL),
        ("eval pass", "step_commit", passes.eval_pass, passes.committed, EVAL_GOAL),
        ("train step", "step_commit", passes.train_step, passes.committed, TRAIN_GOAL),
    ]
    return [
        compare(
            f"{what}, {name}: {verb} / stock",
            Side(verb, run, prepare),
            Side("stock", run, passes.stock),
            rounds=rounds,
            goal=goal,
        )
        for what, verb, run, prepare, goal in cases
    ]


def main() -> None:
    rounds = rounds_asked_for(41)
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, PIXELS, PIXELS)
    results: list[Comparison] = []
    for name in ("resnet18", "resnet50"):
        results += compare_all(name, Passes(resnet(name, images), images), rounds)
    write("norm_policies", {"batch": BATCH, "pixels": PIXELS, "rounds": rounds}, results)


if __name__ == "__main__":
    main()
