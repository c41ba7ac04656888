"""What do groups cost? A model of 2,000 tensors, with rates by layer and decay, not run.

The goal is absolute: 50 ms. Beside it stands the loop over ``named_parameters`` that people write by hand, which parses
a number out of each name and so fits one model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import Comparison, Side, compare, rounds_asked_for, write
from torch import nn

from frostline.optim import check_groups, param_groups

GOAL = 0.05
TENSORS = 2_000


class Block(nn.Module):
    """Eight tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 4)


class Net(nn.Module):
    """A stem, 249 blocks in a row or in four stages, and a head; it may tell its depths as timm's models do."""

    def __init__(self, *, stages: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.extra = nn.ParameterList(nn.Parameter(torch.zeros(4)) for _ in range(5))
        counts = [249 // stages + (index < 249 % stages) for index in range(stages)]
        self.stages = nn.Sequential(*(nn.Sequential(*(Block() for _ in range(count))) for count in counts))
        self.fc = nn.Linear(4, 3)
        self.spared = {name for name, _ in self.named_parameters() if name.startswith(("stem", "stages.0"))}


class Telling(Net):
    """The same, with a matcher, and with names that do not decay."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        return {"stem": "^stem|^extra", "blocks": r"^stages\.(\d+)\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        return self.spared


def by_hand(model: nn.Module, blocks: int) -> list[dict[str, Any]]:
    """One loop, for models whose blocks are ``stages.0.N``."""
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        found = re.match(r"stages\.\d+\.(\d+)\.", name)
        depth = int(found.group(1)) + 1 if found else blocks + 1 if name.startswith("fc") else 0
        decays = parameter.ndim > 1
        group = groups.setdefault(
            (depth, decays),
            {"params": [], "lr": 0.75 ** (blocks + 1 - depth), "weight_decay": 0.05 if decays else 0.0},
        )
        group["params"].append(parameter)
    return list(groups.values())


def main() -> None:
    rounds = rounds_asked_for(25)
    ours: Callable[..., Any] = partial(param_groups, lr=1.0, layer_decay=0.75, weight_decay=0.05)
    row, staged, telling = Net(stages=1), Net(stages=4), Telling(stages=4)
    assert all(len(list(model.parameters())) == TENSORS for model in (row, staged, telling))
    rates = [{id(p): g["lr"] for g in groups for p in g["params"]} for groups in (ours(row), by_hand(row, 249))]
    assert rates[0] == rates[1]
    hand = Side("a loop by hand", lambda: by_hand(row, 249), repeats=3)
    comparisons: list[Comparison] = []
    for name, model in (("one row of 249 blocks", row), ("four stages", staged), ("told by the model", telling)):
        side = Side("param_groups", lambda model=model: ours(model), repeats=3)
        comparisons.append(compare(f"{TENSORS:,} tensors, {name}", side, hand, rounds=rounds, goal=None))
    optimizer = torch.optim.SGD(ours(row))
    asked = ours(row)
    side = Side("check_groups", lambda: check_groups(row, optimizer, asked), repeats=3)
    comparisons.append(compare(f"{TENSORS:,} tensors, checked", side, hand, rounds=rounds, goal=None))
    seconds = {each.name: each.side_seconds for each in comparisons}
    for name, taken in seconds.items():
        print(f"{name}: {taken * 1e3:.1f} ms, goal {GOAL * 1e3:.0f} ms, {'met' if taken <= GOAL else 'MISSED'}")
    write("param_groups", {"rounds": rounds, "tensors": TENSORS, "seconds": seconds, "goal_seconds": GOAL}, comparisons)


if __name__ == "__main__":
    main()
