"""Training heads on a frozen trunk: features computed once against what users of torch, Lightning and fastai write.

Same images, order, head, optimizer, rate and number of epochs on all sides, evaluation after each epoch; the images lie
decoded in memory. The library runs again between one peer and the next, and beside each of these runs the physical
limit: one pass of a folded channels-last trunk over the data, and reading its features once an epoch. The time of the
library includes its plan, its checks and writing the cache.

The plain loop runs all epochs. The other peers run the first few, because each of their epochs does the same work
again; their time for all is that of the epochs run, and the mean of those after the first for each of the others.

    python benchmarks/fast_heads.py [--rounds N] [--peer-epochs N] [--rows N] [--quick]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fast_images import Decoding, Pictures, cifar, hymenoptera, stripes
from fast_peers import PLAIN, Job, Outcome, Peer, installed, plain_epoch, right
from measure import Comparison, Side, compare, others, resnet, row, write
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import DataLoader

import frostline as fl

OURS = "frostline"
VARIANT = ("folded", "channels_last")
# Samples that the prefix computes at a time. Here more are not faster; and what is computed to check it, and to fill up
# the last ones, is a multiple of them.
ROWS = 8
# Images on which the folded prefix is compared with the plain one. (A deep trunk with random weights amplifies
# rounding: the plain one in float32 is itself 4e-5 from the one in float64.)
CHECKED = 4
# The largest share of the other side's time that is good enough.
TEN_EPOCHS_GOAL, LATER_GOAL, MANY_HEADS_GOAL, NO_CACHE_GOAL, LIMIT_GOAL = 1 / 8, 1 / 50, 1 / 100, 1 / 1.4, 1.15
# Images by which the accuracy of the plain loop and of the library may differ.
ACCURACY_GOAL = 1


@dataclass(frozen=True)
class Suite:
    """What is run.

    Attributes:
        data: name of each data set, and what loads it.
        arch: of the trunk.
        epochs: that a head is trained for.
        peer_epochs: that peers other than the plain loop run.
        heads: how many are trained on one pass.
        batch: images a step.
        rounds: of the comparison without cache.
        peers: what is compared with; the plain loop first.
        rows: samples that the prefix computes at a time.
    """

    data: Mapping[str, Callable[[], tuple[Pictures, Pictures, Decoding | None]]]
    arch: str
    epochs: int
    peer_epochs: int
    heads: int
    batch: int
    rounds: int
    peers: tuple[Peer, ...]
    rows: int = ROWS


def full_suite(rounds: int, peer_epochs: int, rows: int) -> Suite:
    """Photographs of ants and bees, and a part of CIFAR-10, at the size that ResNet-50 takes."""
    data = {"hymenoptera": partial(hymenoptera, 224), "CIFAR-10": partial(cifar, 224, 12, 8)}
    return Suite(data, "resnet50", 10, peer_epochs, 50, 32, rounds, installed(), rows)


def quick_suite(peers: tuple[Peer, ...] | None = None) -> Suite:
    """A small one on synthetic images, which takes seconds and says nothing about speed."""
    data = {"stripes": lambda: (stripes(64, 30, 0), stripes(64, 15, 1), None)}
    return Suite(data, "resnet18", 3, 2, 5, 8, 2, installed() if peers is None else peers, 8)


# The library --------------------------------------------------------------------------------------------------------


@dataclass
class Ours:
    """What came of a run of the library.

    Attributes:
        parts: seconds of what it does, by name.
        later: seconds of each epoch after the first.
        differences: of the features from those of the plain prefix, as a part of the largest.
        many: seconds that training many heads took, on the same features.
        correct: images that were right after each epoch.
        others: share of the machine that other processes took.
    """

    parts: dict[str, float] = field(default_factory=dict)
    later: list[float] = field(default_factory=list)
    differences: tuple[float, ...] = ()
    many: float = 0.0
    correct: list[int] = field(default_factory=list)
    others: float = 0.0

    @property
    def seconds(self) -> float:
        """Of one head, all in all."""
        return sum(self.parts.values())

    @contextmanager
    def part(self, name: str) -> Generator[None, None, None]:
        start = time.perf_counter()
        yield
        self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - start


def ours(job: Job, folder: Path, rows: int, heads: int = 0) -> Ours:
    """Compute the features once, and train a head on them; then ``heads`` more, counted apart."""
    result, watched = Ours(), others()
    with result.part("plan"):
        model = job.model()
        hold = fl.freeze(model, "*", "!fc*")
        plan = fl.fast.plan(model, _stacked(job.train, 2), timing=False)
    with result.part("prefix"):
        prefix = plan.prefix(*VARIANT, rows=rows)
        result.differences = prefix.check(_stacked(job.train, CHECKED), turned=False)  # the cache turns its first one
    with result.part("features"):
        train, val = (
            fl.fast.FeatureCache(folder / name, prefix, data) for name, data in (("train", job.train), ("val", job.val))
        )
        train.fill()
        val.fill()
    task = head_task(job, job.head)
    ends = [time.perf_counter()]
    with result.part("head"):
        trained = fl.fast.train_heads(
            train, {"head": task}, val=val, trunk=model, after_epoch=lambda _row: ends.append(time.perf_counter())
        )
    result.later = [end - start for start, end in itertools.pairwise(ends[1:])]
    result.correct = [round((row.accuracy or 0.0) * len(job.val)) for row in trained.epochs]
    result.others = watched()
    if heads:
        tasks = {f"head {n}": head_task(job, seeded_head(job.head, n), seed=n) for n in range(heads)}
        start = time.perf_counter()
        fl.fast.train_heads(train, tasks, val=val, trunk=model)
        result.many = time.perf_counter() - start
    hold.thaw()
    return result


def head_task(job: Job, head: nn.Linear, seed: int | None = None) -> Any:
    """The task that the peers have."""
    return fl.fast.HeadTask(
        targets=job.train.labels,
        val_targets=job.val.labels,
        # The boundary is behind the pooling, and the model flattens only then.
        head=nn.Sequential(nn.Flatten(), head),
        lr=job.rate,
        weight_decay=job.weight_decay,
        epochs=job.epochs,
        batch_size=job.batch,
        seed=job.seed if seed is None else seed,
    )


def seeded_head(like: nn.Linear, seed: int) -> nn.Linear:
    """Another start of the same head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(like.in_features, like.out_features)


# The limit ----------------------------------------------------------------------------------------------------------


class Limit:
    """One pass of the trunk over batches that are ready in memory, and reading the features once an epoch.

    Nothing of the library is used: the trunk is folded by torch's own function.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.trunk = folded(job.trunk)
        self.epochs, self.file = job.epochs, folder / "features.safetensors"
        self.batches = [
            images.contiguous(memory_format=torch.channels_last)
            for data in (job.train, job.val)
            for images, _ in DataLoader(data, job.batch)
        ]
        save_file({"features": self._pass()}, self.file)

    def __call__(self) -> float:
        start = time.perf_counter()
        self._pass()
        for _ in range(self.epochs):
            # Loading maps the file; the copy reads it.
            load_file(self.file)["features"].clone()
        return time.perf_counter() - start

    @torch.no_grad()
    def _pass(self) -> Tensor:
        return torch.cat([self.trunk(batch) for batch in self.batches])


def folded(trunk: nn.Module) -> nn.Module:
    """A copy of a ResNet of torchvision without ``fc``, batch norm folded into the convolution before it."""
    model = copy.deepcopy(trunk).eval().requires_grad_(False)
    model.fc = nn.Identity()
    for parent in list(model.modules()):
        # In torchvision's ResNets a norm follows its convolution in the order of the children.
        for (first, conv), (second, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, first, fuse_conv_bn_eval(conv, norm))
                setattr(parent, second, nn.Identity())
    return model.to(memory_format=torch.channels_last)


# Without cache ------------------------------------------------------------------------------------------------------


def compare_without_cache(name: str, job: Job, rounds: int, rows: int) -> Comparison:
    """An epoch of new random crops, and its evaluation: the prefix in front of the head against the plain loop."""
    fresh = replace(job, train=job.train.augmented(job.seed))
    by_hand, held = fresh.model(), fresh.model()
    for parameter_name, parameter in by_hand.named_parameters():
        parameter.requires_grad_(parameter_name.startswith("fc."))
    hold = fl.freeze(held, "*", "!fc*")
    prefix = fl.fast.plan(held, _stacked(fresh.train, 2), timing=False).prefix(*VARIANT, rows=rows)
    optimizers = {id(model): fresh.optimizer(model.fc.parameters()) for model in (by_hand, held)}
    train, val = fresh.loaders()

    def plain() -> None:
        plain_epoch(by_hand, optimizers[id(by_hand)], train)
        right(by_hand, val)

    def with_prefix() -> None:
        optimizer = optimizers[id(held)]
        for images, labels in train:
            optimizer.zero_grad()
            cross_entropy(prefix.rest(prefix(images)), labels).backward()
            optimizer.step()
        with torch.no_grad():
            sum(int((prefix.rest(prefix(images)).argmax(1) == labels).sum()) for images, labels in val)

    compared = compare(
        f"{name}, an epoch without cache: {OURS} / {PLAIN.name}",
        Side(OURS, with_prefix),
        Side(PLAIN.name, plain),
        rounds=rounds,
        goal=NO_CACHE_GOAL,
        warmup=0,
    )
    hold.thaw()
    return compared


# Everything ---------------------------------------------------------------------------------------------------------


@dataclass
class Runs:
    """All runs on one data set, in the order in which they were made.

    Attributes:
        job: what was to be done.
        decoding: how fast its files become pixels; None where there are no files.
        ours: runs of the library: one before the first peer, and one after each.
        limits: seconds of the limit, beside each of them.
        peers: name and outcome of each.
    """

    job: Job
    decoding: Decoding | None
    ours: list[Ours]
    limits: list[float]
    peers: dict[str, Outcome]


def run_data(name: str, suite: Suite, folder: Path) -> Runs:
    """Run all sides on one data set."""
    train, val, decoding = suite.data[name]()
    torch.manual_seed(0)
    trunk = resnet(suite.arch, _stacked(train, min(16, len(train)))).eval()
    head = nn.Linear(trunk.fc.in_features, int(train.labels.max()) + 1)
    job = Job(trunk, head, train, val, suite.epochs, suite.batch)
    limit = Limit(job, folder)
    runs = Runs(job, decoding, [], [], {})

    def ours_and_limit() -> None:
        number = len(runs.ours)
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            if number % 2:
                runs.limits.append(limit())
            runs.ours.append(ours(job, Path(inside), suite.rows, suite.heads if number == 0 else 0))
            if number % 2 == 0:
                runs.limits.append(limit())
        say(f"{name}: {OURS} {runs.ours[-1].seconds:.2f} s, limit {runs.limits[-1]:.2f} s")

    ours_and_limit()
    for peer in suite.peers:
        # A peer that runs fewer epochs is compared with the plain loop's accuracy after as many.
        outcome = peer.run(job if peer is PLAIN else replace(job, epochs=min(suite.epochs, suite.peer_epochs)))
        runs.peers[peer.name] = outcome
        say(f"{name}: {peer.name} {outcome.seconds(suite.epochs):.2f} s, right {outcome.correct} of {len(val)}")
        ours_and_limit()
    return runs


def comparisons(name: str, runs: Runs, heads: int) -> list[Comparison]:
    """What the runs on one data set say."""
    epochs = runs.job.epochs
    best = min(runs.peers, key=lambda peer: runs.peers[peer].seconds(epochs))
    found: list[Comparison] = []
    for number, (peer, outcome) in enumerate(runs.peers.items()):
        around = [run.seconds for run in runs.ours[number : number + 2]]
        goal = TEN_EPOCHS_GOAL if peer == best else None
        label = f"{name}, {epochs} epochs of a head: {OURS} / {peer}{' (the best)' if peer == best else ''}"
        found.append(compared(label, peer, goal, around, [outcome.seconds(epochs)] * len(around)))
    fastest = min(runs.peers, key=lambda peer: runs.peers[peer].later)
    later = [statistics.fmean(run.later) for run in runs.ours]
    label = f"{name}, an epoch after the first: {OURS} / {fastest} (the best)"
    found.append(compared(label, fastest, LATER_GOAL, later, [runs.peers[fastest].later] * len(later)))
    first = runs.ours[0]
    many = first.seconds - first.parts["head"] + first.many
    alone = heads * runs.peers[PLAIN.name].seconds(epochs)
    label = f"{name}, {heads} heads: {OURS} / {heads} times the plain loop"
    found.append(compared(label, PLAIN.name, MANY_HEADS_GOAL, [many], [alone]))
    label = f"{name}, {epochs} epochs of a head: {OURS} / the limit"
    found.append(compared(label, "the limit", LIMIT_GOAL, [run.seconds for run in runs.ours], runs.limits))
    # What does not grow with the number of images left out.
    growing = [run.parts["features"] + run.parts["head"] for run in runs.ours]
    found.append(compared(f"{label}, plan and check left out", "the limit", None, growing, runs.limits))
    return found


def compared(
    name: str, baseline: str, goal: float | None, mine: Sequence[float], theirs: Sequence[float]
) -> Comparison:
    """The ratios within each round; with one round it is its own median and quartiles."""
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    low, median, high = statistics.quantiles(ratios * 2 if len(ratios) == 1 else ratios, n=4, method="inclusive")
    result = Comparison(name, OURS, baseline, goal, median, (low, high), None if goal is None else median <= goal)
    result.side_seconds, result.baseline_seconds = statistics.median(mine), statistics.median(theirs)
    result.ratios = ratios
    print(row(asdict(result)), flush=True)
    return result


def facts(runs: Runs) -> dict[str, Any]:
    """All that was seen on one data set, as JSON-ready values."""
    job = runs.job
    images = len(job.train) + len(job.val)
    plain = runs.peers[PLAIN.name]
    mine = runs.ours[0].correct
    decoding = runs.decoding
    return {
        "train": len(job.train),
        "val": len(job.val),
        "classes": job.head.out_features,
        "decoding": None if decoding is None else {**asdict(decoding), "images_per_second": decoding.per_second},
        "limit_images_per_second": images / statistics.median(runs.limits),
        "right_after_each_epoch": {OURS: mine, **{peer: outcome.correct for peer, outcome in runs.peers.items()}},
        "accuracy_as_plain": {
            "goal": ACCURACY_GOAL,
            "images_apart": [abs(a - b) for a, b in zip(mine, plain.correct, strict=True)],
            "met": abs(mine[-1] - plain.correct[-1]) <= ACCURACY_GOAL,
        },
        "ours": [asdict(run) for run in runs.ours],
        "limit_seconds": runs.limits,
        "peers": {
            peer: {**asdict(outcome), "epochs_run": len(outcome.epochs), "seconds": outcome.seconds(job.epochs)}
            for peer, outcome in runs.peers.items()
        },
    }


def run_suite(suite: Suite) -> tuple[dict[str, Any], list[Comparison]]:
    """Run everything: what is needed to read the figures, and the figures."""
    found: list[Comparison] = []
    seen: dict[str, Any] = {}
    clock = time.perf_counter()
    for name in suite.data:
        with tempfile.TemporaryDirectory() as folder:
            runs = run_data(name, suite, Path(folder))
        seen[name] = facts(runs)
        found += comparisons(name, runs, suite.heads)
        # As a loop would: as many samples at a time as a batch has.
        found.append(compare_without_cache(name, runs.job, suite.rounds, suite.batch))
    settings = {
        "arch": suite.arch, "weights": "random, with fitting statistics", "epochs": suite.epochs,
        "peer_epochs": suite.peer_epochs, "heads": suite.heads, "batch": suite.batch, "optimizer": "AdamW",
        "variant": list(VARIANT), "rows": suite.rows, "checked": CHECKED, "rounds_of_each_peer": 1,
        "rounds_without_cache": suite.rounds, "rows_without_cache": suite.batch,
        "seconds": round(time.perf_counter() - clock), "data": seen,
    }  # fmt: skip
    return settings, found


def say(line: str) -> None:
    print(line, flush=True)


def _stacked(data: Pictures, count: int) -> Tensor:
    return torch.stack([data[index][0] for index in range(count)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the comparison without cache (default 3)")
    parser.add_argument("--peer-epochs", type=int, default=3, help="epochs that Lightning and fastai run (default 3)")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"that the prefix computes at a time (default {ROWS})")
    parser.add_argument("--quick", action="store_true", help="small synthetic images, in seconds; writes nothing")
    asked = parser.parse_args()
    full = full_suite(max(2, asked.rounds), max(2, asked.peer_epochs), max(1, asked.rows))
    suite = quick_suite() if asked.quick else full
    settings, found = run_suite(suite)
    if not asked.quick:
        write("fast_heads", settings, found)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
