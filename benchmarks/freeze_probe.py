"""What does it cost to freeze with a probe? All of a ResNet-152 but `fc`, against three forward passes on its images.

The goal is for passes in eval mode; passes in train mode, which the probe simulates, are measured too. All of
them run without gradients. Freezing without the probe is measured to tell what the probe itself takes.
"""

from __future__ import annotations

import torch
from measure import Side, compare, resnet, rounds_asked_for, write

import frostline as fl
from frostline.freezing import Hold

GOAL = 1.0
BATCH, PIXELS = 16, 224


def main() -> None:
    rounds = rounds_asked_for(7)
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, PIXELS, PIXELS)
    model = resnet("resnet152", images)
    holds: list[Hold] = []

    def thaw(mode: bool) -> None:
        while holds:
            holds.pop().thaw()
        model.train(mode)

    @torch.no_grad()
    def three_passes() -> None:
        for _ in range(3):
            model(images)

    def freeze(probe: torch.Tensor | None) -> None:
        holds.append(fl.freeze(model, "*", "!fc*", probe=probe))

    probed = Side("fl.freeze(..., probe=images)", lambda: freeze(images), lambda: thaw(True))
    plain = Side("fl.freeze(...)", lambda: freeze(None), lambda: thaw(True))
    in_eval = Side("three forward passes, eval mode", three_passes, lambda: thaw(False))
    in_train = Side("three forward passes, train mode", three_passes, lambda: thaw(True))
    name = "freeze, ResNet-152"
    results = [
        compare(f"{name}: with probe / {in_eval.name}", probed, in_eval, rounds=rounds, goal=GOAL),
        compare(f"{name}: with probe / {in_train.name}", probed, in_train, rounds=rounds, goal=None),
        compare(f"{name}: without probe / {in_eval.name}", plain, in_eval, rounds=max(2, rounds // 2), goal=None),
    ]
    thaw(True)
    write("freeze_probe", {"batch": BATCH, "pixels": PIXELS, "rounds": rounds}, results)


if __name__ == "__main__":
    main()
