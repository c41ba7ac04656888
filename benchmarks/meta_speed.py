"""A meta-step of second-order MAML against higher, torchopt and the plain autograd loop: time, memory, gradients.

Four convolutions of 64 channels, 5-way 1-shot with 15 queries a class, 16 tasks, 5 inner steps; random images, which
cost what others cost. Each side runs its tasks one after the other, with a backward pass for each: the way that is
leanest for all of them. Each side has a process of its own, and they take turns; peak memory is counted from what the
imports and the data take. The gradients are compared in float64: in float32 one ReLU or one maximum that tips over
moves the second-order gradient by up to a per cent, and did so between two runs of one side that differ in their
threads alone.

On a machine with a GPU all tasks in one batched pass (``vmap=True``) are compared with higher.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from measure import QUIET, Comparison, Side, compare, others, rounds_asked_for, row, write
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from frostline.meta.maml import MAML
from frostline.meta.networks import conv4
from frostline.meta.task import Examples, Task

TASKS, STEPS, RATE, WAY, QUERIES = 16, 5, 0.4, 5, 15
TIME_GOAL, MEMORY_GOAL, CHECKPOINTED_MEMORY_GOAL, CHECKPOINTED_TIME_GOAL, CUDA_GOAL = 0.70, 1.3, 0.4, 1.3, 0.33
GRADIENT_GOAL = 1e-4
MEMORY_RUNS = 3
Step = Callable[[nn.Module, list[Task]], None]


def tasks(count: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Task]:
    """Random images, with the labels of few-shot tasks."""
    generator = torch.Generator().manual_seed(0)

    def examples(each: int) -> Examples:
        images = torch.randn(WAY * each, 1, 28, 28, generator=generator)
        labels = torch.arange(WAY).repeat_interleave(each)
        return Examples(images.to(device, dtype), labels.to(device))

    return [Task(examples(1), examples(QUERIES), way=WAY, seed=place) for place in range(count)]


def plain(net: nn.Module, batch: list[Task]) -> None:
    for task in batch:
        values = dict(net.named_parameters())
        for _ in range(STEPS):
            loss = cross_entropy(functional_call(net, values, (task.support.inputs,)), task.support.labels)
            grads = torch.autograd.grad(loss, list(values.values()), create_graph=True)
            values = {name: p - RATE * g for (name, p), g in zip(values.items(), grads, strict=True)}
        output = functional_call(net, values, (task.query.inputs,))
        (cross_entropy(output, task.query.labels) / len(batch)).backward()


def higher(net: nn.Module, batch: list[Task]) -> None:
    import higher as peer

    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    for task in batch:
        with peer.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (inner, steps):
            for _ in range(STEPS):
                steps.step(cross_entropy(inner(task.support.inputs), task.support.labels))
            (cross_entropy(inner(task.query.inputs), task.query.labels) / len(batch)).backward()


def torchopt(net: nn.Module, batch: list[Task]) -> None:
    import torchopt as peer

    optimizer = peer.MetaSGD(net, lr=RATE)
    net_state = peer.extract_state_dict(net, by="reference", detach_buffers=True)
    optimizer_state = peer.extract_state_dict(optimizer, by="reference")
    for task in batch:
        for _ in range(STEPS):
            optimizer.step(cross_entropy(net(task.support.inputs), task.support.labels))
        (cross_entropy(net(task.query.inputs), task.query.labels) / len(batch)).backward()
        peer.recover_state_dict(net, net_state)
        peer.recover_state_dict(optimizer, optimizer_state)


def ours(net: nn.Module, batch: list[Task]) -> None:
    MAML(net, inner_lr=RATE, steps=STEPS).backward(batch)


def checkpointed(net: nn.Module, batch: list[Task]) -> None:
    MAML(net, inner_lr=RATE, steps=STEPS, checkpoint_steps=True).backward(batch, threads=1)


PEERS: dict[str, Step] = {"the plain loop": plain, "higher": higher, "torchopt": torchopt}
OURS, CHECKPOINTED = "frostline", "frostline, checkpoint_steps"
SIDES: dict[str, Step] = {**PEERS, OURS: ours, CHECKPOINTED: checkpointed}


class Worker:
    """A side in a process of its own, as whoever uses it has it: what one has left of memory is nothing to another."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, __file__, "--serve", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self) -> tuple[float, float]:
        """Seconds of a meta-step, and the share of the machine that others had of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print("run", file=self._process.stdin, flush=True)
        seconds, share = self._process.stdout.readline().split()
        return float(seconds), float(share)

    def close(self) -> None:
        self._process.communicate()


def serve(name: str) -> None:
    """Run a meta-step for every line that comes in."""
    torch.manual_seed(0)
    net, batch = conv4(WAY), tasks(TASKS)
    for _ in sys.stdin:
        net.zero_grad()
        watched, start = others(), time.perf_counter()
        SIDES[name](net, batch)
        print(time.perf_counter() - start, watched(), flush=True)


def rounds_of(count: int) -> tuple[list[dict[str, float]], int, int]:
    """The seconds of all sides in each round, and how many rounds were run again, or kept though disturbed."""
    workers = {name: Worker(name) for name in SIDES}
    times: list[dict[str, float]] = []
    repeated = kept = 0
    for worker in workers.values():
        worker.run()
    while len(times) < count:
        order = list(workers) if len(times) % 2 == 0 else list(workers)[::-1]
        found = {name: workers[name].run() for name in order}
        disturbed = any(share > QUIET for _, share in found.values())
        if disturbed and repeated < count:
            repeated += 1
            continue
        kept += disturbed
        times.append({name: seconds for name, (seconds, _) in found.items()})
    for worker in workers.values():
        worker.close()
    return times, repeated, kept


def compared(name: str, peer: str, goal: float, found: tuple[list[dict[str, float]], int, int]) -> Comparison:
    """One side against another, round by round."""
    times, repeated, kept = found
    ratios = [each[name] / each[peer] for each in times]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    result = Comparison(f"meta-step: {name} / {peer}", name, peer, goal, median, (low, high), median <= goal)
    result.side_seconds, result.baseline_seconds = (statistics.median(t[side] for t in times) for side in (name, peer))
    result.repeated_rounds, result.disturbed_rounds, result.ratios = repeated, kept, ratios
    print(row(asdict(result)), flush=True)
    return result


def gradient(name: str, dtype: torch.dtype) -> Tensor:
    """The meta-gradient of two tasks."""
    torch.manual_seed(0)
    net = conv4(WAY).to(dtype)
    SIDES[name](net, tasks(2, dtype))
    return torch.cat([p.grad.double().flatten() for p in net.parameters() if p.grad is not None])


def differences() -> dict[str, float]:
    """How far each side's gradient is from the plain loop's, as a part of its norm, in float64."""
    expected = gradient("the plain loop", torch.float64)
    return {
        name: float((gradient(name, torch.float64) - expected).norm() / expected.norm())
        for name in SIDES
        if name != "the plain loop"
    }


def peak(name: str) -> int:
    """Bytes that a side takes at most over what was there before it ran, in a process of its own."""
    command = [sys.executable, __file__, "--memory", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measured_peak(name: str) -> int:
    torch.manual_seed(0)
    net, batch = conv4(WAY), tasks(TASKS)
    base, most, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], _resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2):
        SIDES[name](net, batch)
    done.set()
    watcher.join()
    return most[0] - base


def memory() -> dict[str, Any]:
    """Peak bytes of each side, medians over processes, and the two ratios to the leanest of the others."""
    peaks = {name: int(statistics.median(peak(name) for _ in range(MEMORY_RUNS))) for name in SIDES}
    leanest = min(peaks[name] for name in PEERS)
    found: dict[str, Any] = {"peak_bytes": peaks}
    for name, goal in ((OURS, MEMORY_GOAL), (CHECKPOINTED, CHECKPOINTED_MEMORY_GOAL)):
        ratio = peaks[name] / leanest
        found[name] = {"ratio": ratio, "goal": goal, "met": ratio <= goal}
    for name, size in peaks.items():
        print(f"peak memory, {name}: {size / 1e6:.0f} MB, {size / leanest:.2f} of the leanest other", flush=True)
    return found


def on_cuda(rounds: int) -> Comparison:
    """All tasks in one batched pass against higher."""
    net, batch = conv4(WAY).cuda(), tasks(TASKS, device="cuda")
    learner = MAML(net, inner_lr=RATE, steps=STEPS)

    def timed(run: Callable[[], object]) -> Callable[[], None]:
        def synchronized() -> None:
            net.zero_grad()
            run()
            torch.cuda.synchronize()

        return synchronized

    return compare(
        "meta-step on CUDA: frostline, vmap / higher",
        Side("frostline, vmap", timed(lambda: learner.backward(batch, vmap=True))),
        Side("higher", timed(lambda: higher(net, batch))),
        rounds=rounds,
        goal=CUDA_GOAL,
    )


def main() -> None:
    rounds = rounds_asked_for(15)
    peaks = memory()
    apart = differences()
    print("gradients in float64, distance from the plain loop's:", apart, flush=True)
    found = rounds_of(rounds)
    results = [
        compared(name, peer, goal, found)
        for name, goal in ((OURS, TIME_GOAL), (CHECKPOINTED, CHECKPOINTED_TIME_GOAL))
        for peer in PEERS
    ]
    if torch.cuda.is_available():
        results.append(on_cuda(rounds))
    settings = {"tasks": TASKS, "inner_steps": STEPS, "way": WAY, "shot": 1, "queries": QUERIES, "rounds": rounds}
    exact = {"goal": GRADIENT_GOAL, "met": max(apart.values()) <= GRADIENT_GOAL, "float64": apart}
    write("meta_speed", {**settings, "memory": peaks, "gradients": exact}, results)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(min(2, torch.get_num_threads()))
    if sys.argv[1:2] == ["--memory"]:
        print(measured_peak(sys.argv[2]))
    elif sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main()
