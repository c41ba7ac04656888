"""What do opening and planning cost? 10,000 tensors inspected, and 2,000 tensors under other names assigned.

The goals are absolute: 0.1 s for inspecting (over the import), 2 s for planning. Beside them stands what others take
for less: the library of the format for names and shapes, torch for the whole file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from measure import Comparison, Side, compare, rounds_asked_for, write
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from frostline.checkpoint import inspect, open_checkpoint, plan_load

INSPECT_GOAL = 0.1
PLAN_GOAL = 2.0


def many() -> dict[str, torch.Tensor]:
    """10,000 small tensors under names of four parts."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {
        f"stage{s}.{b}.norm{n}.{leaf}": torch.ones(4)
        for s in range(5)
        for b in range(100)
        for n in range(5)
        for leaf in leaves
    }


def shapes_by_the_library(path: Path) -> None:
    """Names, shapes and types, as safetensors itself gives them."""
    with safe_open(path, "pt") as file:
        found = {name: (file.get_slice(name).get_shape(), file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    assert len(found) == 10_000


def net(names: tuple[str, str, str, str], blocks: int) -> nn.Module:
    """A net of 8 tensors a block, with names of its own."""
    stage, first, second, norm = names
    return nn.ModuleDict(
        {
            f"{stage}{s}": nn.ModuleList(
                nn.ModuleDict(
                    {
                        first: nn.Conv2d(8, 8, 3, bias=False),
                        f"{norm}1": nn.BatchNorm2d(8),
                        second: nn.Conv2d(8, 8, 3, bias=False),
                        f"{norm}2": nn.Linear(8, 8),
                    }
                )
                for _ in range(blocks // 4)
            )
            for s in range(1, 5)
        }
    )


def main() -> None:
    rounds = rounds_asked_for(15)
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        st, pt = Path(folder) / "many.safetensors", Path(folder) / "many.pt"
        save_file(many(), st)
        torch.save(many(), pt)
        ours = Side("inspect", lambda: inspect(open_checkpoint(st)))
        theirs = Side("safetensors: names, shapes, types", lambda: shapes_by_the_library(st))
        comparisons.append(compare("10,000 tensors, safetensors", ours, theirs, rounds=rounds, goal=None))
        ours = Side("inspect", lambda: inspect(open_checkpoint(pt)))
        theirs = Side("torch.load", lambda: torch.load(pt, weights_only=True))
        comparisons.append(compare("10,000 tensors, torch zip", ours, theirs, rounds=rounds, goal=None))
    source, model = net(("layer", "conv1", "conv2", "bn"), 224), net(("stages", "conv_a", "conv_b", "norm"), 224)
    state = source.state_dict()
    plan = plan_load(model, state)
    assert plan.complete
    assert {row.confidence for row in plan.loaded} == {"inferred"}
    ours = Side("plan_load with inference", lambda: plan_load(model, state))
    theirs = Side("load_state_dict under its own names", lambda: source.load_state_dict(state))
    comparisons.append(compare(f"{len(state):,} tensors renamed", ours, theirs, rounds=rounds, goal=None))
    seconds = {each.name: each.side_seconds for each in comparisons}
    goals = dict(zip(seconds, (INSPECT_GOAL, INSPECT_GOAL, PLAN_GOAL), strict=True))
    for name, taken in seconds.items():
        print(f"{name}: {taken:.3f} s, goal {goals[name]} s, {'met' if taken <= goals[name] else 'MISSED'}")
    write("checkpoint_planning", {"rounds": rounds, "seconds": seconds, "goal_seconds": goals}, comparisons)


if __name__ == "__main__":
    main()
