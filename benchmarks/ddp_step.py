"""Under DistributedDataParallel, on two processes: what a hold adds to a step, and what comparing the ranks adds.

The script starts itself under torchrun, on gloo and with one thread for each process. Both processes run the same side
at the same time, and a side takes as long as the slower of them, by the clock. By the clock it also waits for what else
runs on the machine, twice: for itself and for the other process. So the goal for a step is one for its processor time,
of both processes together; the clock's ratio stands beside it. The one side has called
`fl.freeze(model, "*", "!fc*", optimizer=optimizer)`; the other has set `requires_grad_(False)` and puts the trunk back
into eval mode after each `train()`. Both train `fc` of one ResNet-50 inside one wrapper. `verify_ranks` compares
everything that is held between the processes; once per 100 steps is what is asked for.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
import torch.distributed as dist
from measure import QUIET, Comparison, Side, others, resnet, rounds_asked_for, row, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import frostline as fl
from frostline.freezing import Hold, verify_ranks, wrap

Taken = tuple[float, float]
GOAL, GOAL_CHECK = 1.01, 0.01
PROCESSES = 2
BATCH, PIXELS = 8, 96
STEPS_PER_CHECK = 100


class Steps:
    """A wrapped model whose `fc` trains, with the rest frozen in one of two ways."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.images = images
        self.labels = torch.randint(0, 10, (len(images),))
        self.trunk = [child for name, child in model.named_children() if name != "fc"]
        for part in self.trunk:
            part.requires_grad_(False)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.ddp = wrap(model)
        self.hold: Hold | None = None

    def by_hold(self) -> None:
        if self.hold is None:
            self.hold = fl.freeze(self.ddp, "*", "!fc*", optimizer=self.optimizer)

    def by_hand(self) -> None:
        if self.hold is not None:
            self.hold.thaw()
            self.hold = None

    def step_held(self) -> None:
        self.ddp.train()
        self._step()

    def step_by_hand(self) -> None:
        self.ddp.train()
        for part in self.trunk:
            part.eval()
        self._step()

    def rest_held(self) -> None:
        self.ddp.train()
        self.optimizer.step()

    def rest_by_hand(self) -> None:
        self.ddp.train()
        for part in self.trunk:
            part.eval()
        self.optimizer.step()

    def check(self) -> None:
        verify_ranks(self.ddp)

    def _step(self) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.ddp(self.images), self.labels).backward()
        self.optimizer.step()


def seconds(side: Side) -> tuple[float, float]:
    """The time of one run of a side: by the clock, in the slower of the processes; of the processor, in both."""
    side.prepare()
    side.run()
    dist.barrier()
    start, own = time.perf_counter(), time.process_time()
    for _ in range(side.repeats):
        side.run()
    clock = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
    processor = torch.tensor(time.process_time() - own, dtype=torch.float64)
    dist.all_reduce(clock, op=dist.ReduceOp.MAX)
    dist.all_reduce(processor)
    return float(clock) / side.repeats, float(processor) / side.repeats


def disturbed_by_others(watch: Callable[[], float], start: float, own: float) -> bool:
    """Whether processes other than these took more than `QUIET` of the machine; all of these come to the same."""
    wall = time.perf_counter() - start
    mine = torch.tensor(time.process_time() - own, dtype=torch.float64)
    every = mine.clone()
    dist.all_reduce(every)
    share = torch.tensor(watch() - float(every - mine) / wall / (os.cpu_count() or 1), dtype=torch.float64)
    dist.broadcast(share, 0)
    return float(share) > QUIET


def rounds_of(side: Side, baseline: Side, rounds: int) -> tuple[list[Taken], list[Taken], int, int]:
    """Run both sides in turn, in all processes; what each took, and how many rounds were repeated and disturbed."""
    ours: list[Taken] = []
    theirs: list[Taken] = []
    repeated = kept = 0
    while len(ours) < rounds:
        order = (side, baseline) if len(ours) % 2 == 0 else (baseline, side)
        watch, start, own = others(), time.perf_counter(), time.process_time()
        taken = {each: seconds(each) for each in order}
        disturbed = disturbed_by_others(watch, start, own)
        if disturbed and repeated < rounds // 4:
            repeated += 1
            continue
        kept += disturbed
        ours.append(taken[side])
        theirs.append(taken[baseline])
    return ours, theirs, repeated, kept


def compare(
    name: str, side: Side, baseline: Side, *, rounds: int, goals: Sequence[float | None], unit: int = 1
) -> list[Comparison]:
    """By the clock and by the processor; one run of the side is compared with ``unit`` runs of the baseline."""
    ours, theirs, repeated, kept = rounds_of(side, baseline, rounds)
    results: list[Comparison] = []
    for number, (by, goal) in enumerate(zip(("clock", "processor time"), goals, strict=True)):
        result = Comparison(f"{name}, {by}", side.name, baseline.name, goal)
        pairs = [(a[number], b[number] * unit) for a, b in zip(ours, theirs, strict=True)]
        result.ratios = [a / b for a, b in pairs]
        low, result.median, high = statistics.quantiles(result.ratios, n=4, method="inclusive")
        result.quartiles = (low, high)
        result.met = None if goal is None else result.median <= goal
        result.side_seconds = statistics.median(a for a, _ in pairs)
        result.baseline_seconds = statistics.median(b for _, b in pairs)
        result.repeated_rounds, result.disturbed_rounds = repeated, kept
        if dist.get_rank() == 0:
            print(row(asdict(result)), flush=True)
        results.append(result)
    return results


def measure(rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, PIXELS, PIXELS)
    steps = Steps(resnet("resnet50", images), images)
    held = Side("fl.freeze(..., optimizer=)", steps.step_held, steps.by_hold, 3)
    hand = Side("requires_grad_(False), eval() after each train()", steps.step_by_hand, steps.by_hand, 3)
    check = Side("verify_ranks(ddp)", steps.check, steps.by_hold, 3)
    results = compare(
        "DDP step on 2 processes, ResNet-50: held / by hand", held, hand, rounds=rounds, goals=(None, GOAL)
    )
    results += compare(
        "the same without forward and backward",
        Side(held.name, steps.rest_held, steps.by_hold, 100),
        Side(hand.name, steps.rest_by_hand, steps.by_hand, 100),
        rounds=rounds,
        goals=(None, None),
    )
    results += compare(
        f"comparing the ranks, ResNet-50: once / {STEPS_PER_CHECK} steps",
        check,
        held,
        rounds=max(2, rounds // 4),
        goals=(GOAL_CHECK, GOAL_CHECK),
        unit=STEPS_PER_CHECK,
    )
    if dist.get_rank() == 0:
        settings = {"batch": BATCH, "pixels": PIXELS, "processes": PROCESSES, "rounds": rounds}
        write("ddp_step", settings, results)
    dist.barrier()
    dist.destroy_process_group()


def main() -> int:
    rounds = rounds_asked_for(25)
    if "RANK" in os.environ:
        measure(rounds)
        return 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1"]
    command = [*launcher, "--nproc_per_node", str(PROCESSES), __file__, "--rounds", str(rounds)]
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **os.environ}
    return subprocess.run([sys.executable, *command], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
