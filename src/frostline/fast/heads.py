"""Many heads on the features of one frozen trunk, trained side by side; each comes out as if it were alone.

Source:
    The idea that a frozen part need run but once is older than its name; "linear probes" are in Alain and Bengio,
    Understanding Intermediate Layers Using Linear Classifier Probes, 2016.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from frostline.errors import DataError, name_some
from frostline.fast.feature_source import FeaturesInMemory, FeatureSource, features_of, gather
from frostline.fast.features import Features
from frostline.fast.head_run import HeadEpoch, HeadRun
from frostline.fast.head_task import HeadTask, check_names
from frostline.fast.heads_isolation import IsolationWatch
from frostline.fast.heads_result import HeadsResult, row_of
from frostline.norms.untouched import random_state_kept
from frostline.runs.seeds import drops_last, mix_seed, order_of
from frostline.state.digest import digest

Given: TypeAlias = "FeatureSource | Tensor | Sequence[Tensor]"
# Validation goes through so many samples at a time.
_VALIDATED_AT_ONCE = 256


def train_heads(
    features: nn.Module | Given,
    tasks: Mapping[str, HeadTask],
    *,
    val: Given | None = None,
    inputs: Tensor | Iterable[Tensor] | None = None,
    val_inputs: Tensor | Iterable[Tensor] | None = None,
    rows: int = 32,
    trunk: nn.Module | None = None,
    device: torch.device | str | None = None,
    after_epoch: Callable[[HeadEpoch], None] | None = None,
) -> HeadsResult:
    """Train many heads on the same features, side by side.

    Each head has its own optimizer (AdamW), its own order, which depends on (seed, epoch) alone as in
    ``frostline finetune``, and its own early stopping; heads of one seed, batch size and choice of samples share the
    batches they are fed with. **Each comes out equal to the bit to the one that trains alone**, whatever the others do:
    a head whose loss is not finite is stopped and reported, and the others go on. The trunk, the modules in ``tasks``,
    the features and the random generators are left as they were.

    Args:
        features: a :class:`FeatureSource` such as a cache, or tensors with one row a sample, or the trunk itself.
        tasks: name to what is learned. A name makes a path, so it has no dots.
        val: features to validate on; by default those of ``features``, of which ``val_samples`` chooses.
        inputs: what to run a trunk on, which is done once, in chunks of ``rows`` samples; see :func:`features_of`.
        val_inputs: likewise to validate on.
        rows: see ``inputs``.
        trunk: where features are given, the trunk they come from, for the proof that it did not move.
        device: where heads train; by default where the tensors are, and the CPU for a source.
        after_epoch: told of every epoch of every head. In epoch ``n`` a source gives view ``n - 1`` of its samples,
            modulo their number; validation sees view 0.

    Returns:
        The :class:`HeadsResult`.

    Raises:
        ModelError: there is no task, a name makes no path, or a head does not take the features.
        DataError: targets and samples do not belong together, or there are no inputs for a trunk.
        CannotFreeze: heads share memory with each other or with the trunk.

    Example:
        >>> x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
        >>> tasks = {
        ...     "sign": HeadTask(x[:, 0] > 0, x[:, 0] > 0, out_features=2, lr=0.1),
        ...     "side": HeadTask(x[:, 1] > 0, x[:, 1] > 0, out_features=2, lr=0.1, patience=2),
        ... }
        >>> result = train_heads(nn.Identity(), tasks, inputs=x, val_inputs=x)
        >>> result.isolation.isolated, [row.accuracy > 0.9 for row in result.rows]
        (True, [True, True])
    """
    check_names(tasks)
    began = time.perf_counter()
    if isinstance(features, nn.Module):
        if inputs is None:
            raise DataError("train_heads: a trunk was given, and nothing to run it on\n  fix: inputs=...")
        trunk = features
        given: Given = features_of(features, inputs, rows=rows)
        val = val if val_inputs is None else features_of(features, val_inputs, rows=rows)
    else:
        if inputs is not None or val_inputs is not None:
            raise DataError(
                "train_heads: inputs are for a trunk, and features were given\n"
                "  fix: val=... for features to validate on"
            )
        given = features
    feature_seconds = time.perf_counter() - began if isinstance(features, nn.Module) else 0.0
    place = _device(given, features, device)
    with random_state_kept():
        training = _Training(_source(given, place), None if val is None else _source(val, place), tasks, trunk, place)
        epochs = training.run(after_epoch or _tell_nobody)
    return HeadsResult(
        rows=tuple(row_of(run) for run in training.runs.values()),
        heads={name: run.module for name, run in training.runs.items()},
        isolation=training.watch.report(),
        epochs=tuple(epochs),
        feature_seconds=feature_seconds,
        seconds=time.perf_counter() - began - feature_seconds,
    )


class _Training:
    """All heads while they train."""

    def __init__(
        self,
        source: FeatureSource,
        val: FeatureSource | None,
        tasks: Mapping[str, HeadTask],
        trunk: nn.Module | None,
        device: torch.device,
    ) -> None:
        self._source, self._val, self._device = source, val or source, device
        for name, task in tasks.items():
            _check_samples(name, "targets", task.targets, task.samples, len(source))
            if task.val_targets is not None:
                if val is None and task.val_samples is None:
                    raise DataError(
                        f"the head {name!r} has val_targets, and nothing says of which features\n"
                        "  fix: val=... or val_inputs=..., or val_samples=... of those it trains on"
                    )
                _check_samples(name, "val_targets", task.val_targets, task.val_samples, len(self._val))
        example = gather(source, torch.arange(min(2, len(source))), 0, device)
        self.runs = {name: HeadRun(name, task, example) for name, task in tasks.items()}
        self.watch = IsolationWatch({name: run.module for name, run in self.runs.items()}, trunk)
        by_order: dict[tuple[object, ...], list[HeadRun]] = {}
        by_validation: dict[object, list[HeadRun]] = {}
        for run in self.runs.values():
            task = run.task
            samples = "all" if task.samples is None else digest(torch.as_tensor(task.samples))
            by_order.setdefault((task.seed, task.batch_size, samples), []).append(run)
            if task.val_targets is not None:
                chosen = "all" if task.val_samples is None else digest(torch.as_tensor(task.val_samples))
                by_validation.setdefault(chosen, []).append(run)
        self._fed_alike = list(by_order.values())
        self._validated_alike = list(by_validation.values())

    def run(self, told: Callable[[HeadEpoch], None]) -> list[HeadEpoch]:
        rows: list[HeadEpoch] = []
        for epoch in range(1, max(run.task.epochs for run in self.runs.values()) + 1):
            going = [run for run in self.runs.values() if run.active]
            if not going:
                break
            self._train(epoch)
            self._validate()
            for run in going:
                row = run.end_epoch()
                if row is not None:
                    rows.append(row)
                    told(row)
                if not run.active:
                    run.finish()
                    self.watch.ended(run.name)
        return rows

    def _train(self, epoch: int) -> None:
        """One epoch: a step of every head in turn, so that the first round can be compared as a whole."""
        lanes = [lane for runs in self._fed_alike if (lane := self._lane([r for r in runs if r.active], epoch))]
        first = epoch == 1
        while lanes:
            lanes = [lane for lane in lanes if next(lane, None) is not None]
            if first:
                self.watch.after_first_round()
                first = False

    def _lane(self, runs: list[HeadRun], epoch: int) -> Iterator[int] | None:
        """The steps of heads that are fed alike; nothing if none of them goes on."""
        if not runs:
            return None
        task = runs[0].task
        samples = torch.arange(len(self._source)) if task.samples is None else torch.as_tensor(task.samples)
        size, most = len(samples), task.batch_size
        order = order_of(size, task.seed, epoch)
        for run in runs:
            run.begin_epoch(order)
        return self._steps(runs, samples.index_select(0, order), epoch, size - 1 if drops_last(size, most) else size)

    def _steps(self, runs: list[HeadRun], chosen: Tensor, epoch: int, end: int) -> Iterator[int]:
        task, view = runs[0].task, (epoch - 1) % self._source.views
        for start in range(0, end, task.batch_size):
            going = [run for run in runs if not run.diverged]
            if not going:
                return
            batch = _SharedBatch(self._source, chosen[start : start + task.batch_size], view, self._device)
            seed = mix_seed(task.seed, epoch, start)
            for run in going:
                if epoch == 1 and start == 0:
                    self.watch.before_first_step(run.name)
                    run.step(batch.features(), start, seed)
                    self.watch.after_first_step(run.name)
                else:
                    run.step(batch.features(), start, seed)
            yield start

    def _validate(self) -> None:
        for alike in self._validated_alike:
            runs = [run for run in alike if run.active]
            if not runs:
                continue
            task = runs[0].task
            samples = torch.arange(len(self._val)) if task.val_samples is None else torch.as_tensor(task.val_samples)
            for run in runs:
                run.begin_validation()
            for start in range(0, len(samples), _VALIDATED_AT_ONCE):
                batch = _SharedBatch(self._val, samples[start : start + _VALIDATED_AT_ONCE], 0, self._device)
                for run in runs:
                    run.validate(batch.features(), start)


class _SharedBatch:
    """A batch that several heads are fed with, gathered once; again only if a head has written to it."""

    def __init__(self, source: FeatureSource, indices: Tensor, view: int, device: torch.device) -> None:
        self._gather = lambda: gather(source, indices, view, device)
        self._features: Features = ()
        self._versions: list[int] | None = None

    def features(self) -> Features:
        # A head may begin with `nn.ReLU(inplace=True)`.
        if self._versions is None or self._versions != [each._version for each in self._features]:
            self._features = self._gather()
            self._versions = [each._version for each in self._features]
        return self._features


def _source(given: Given, device: torch.device) -> FeatureSource:
    if isinstance(given, Tensor):
        return FeaturesInMemory(given, device)
    if isinstance(given, FeatureSource):
        return given
    return FeaturesInMemory(given, device)


def _device(given: Given, features: object, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    if isinstance(features, nn.Module):
        return next((each.device for each in features.parameters()), torch.device("cpu"))
    if isinstance(given, Tensor):
        return given.device
    if isinstance(given, FeatureSource) or not given:
        return torch.device("cpu")
    return given[0].device


def _check_samples(name: str, what: str, targets: Any, samples: Any, size: int) -> None:
    if samples is None:
        if len(targets) != size:
            option = what.replace("targets", "samples")
            raise DataError(
                f"the head {name!r} has {len(targets):,} {what} for features of {size:,} samples\n"
                f"  fix: one for each sample, or {option}=... that says of which they are"
            )
        return
    outside = [str(index) for index in torch.as_tensor(samples).tolist() if not 0 <= index < size]
    if outside:
        raise DataError(
            f"the head {name!r} has {what} of samples that are not there: {name_some(outside)}\n"
            f"  found: features of {size:,} samples\n  fix: numbers from 0 to {size - 1}"
        )


def _tell_nobody(row: HeadEpoch) -> None:
    del row
