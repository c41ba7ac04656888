"""Why eval differs from train: per layer, cause by cause, with the figures behind it, and what each remedy did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import DomainError
from frostline.norms.causes import judge
from frostline.norms.causes.from_state import non_finite
from frostline.norms.counterfactuals import (
    Bench,
    Slice,
    Statistics,
    measure_statistics,
    row,
    statistics_from,
)
from frostline.norms.evidence import Evidence, LayerFacts, off_layers
from frostline.norms.feed import Feed, Forward
from frostline.norms.look import Progress, look
from frostline.norms.norm_report import CauseRow, Channel, Counterfactual, NormLayerRow, NormReport, RemedyRow
from frostline.norms.observe import tracked_layers
from frostline.norms.processes import gathered, world_size
from frostline.norms.ranks import rank_differences
from frostline.norms.read_policy import policy_of
from frostline.norms.remedies import Trial, measured, unmeasured
from frostline.norms.scores import Metric
from frostline.norms.untouched import random_state_kept, untouched
from frostline.state import names

# Of this many layers, the worst ones, a report draws the running statistics against the population.
DRAWN = 6
# In so many layers that are off, the worst ones, the statistics are exchanged one layer at a time.
SWAPPED = 3


def diagnose(
    model: nn.Module,
    loader: Iterable[Any],
    metric: Metric = None,
    domains: Mapping[str, Iterable[Any]] | None = None,
    *,
    train_loader: Iterable[Any] | None = None,
    held_out: Iterable[Any] | None = None,
    optimizer: Optimizer | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    ranks: Sequence[Mapping[str, Tensor]] | None = None,
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    counterfactuals: bool = True,
    progress: Progress | None = None,
) -> NormReport:
    """Find why a model is worse in eval mode than in train mode, or the other way round.

    Each layer's running statistics are tested against what it is given, by itself (the layers before it as they should
    be) and as it is reached in eval mode. The unit of the test is the sample; a layer counts as off only if it is off
    by more than noise **and** by enough for the next layer to feel it. Counters, types and flags are read, and every
    cause that fits is named with its figures, the most likely first.

    With a metric, the same weights are scored under other statistics, with bootstrapped intervals:

    ====  =====================================================================
    E0    the running statistics, as they are
    E1    population statistics of ``train_loader``, or of part of the data
    E2    population statistics of the data at hand
    E3    those of each batch, at the size of the loader's batches
    E4    those of each domain, scored on that domain
    E5    the running statistics, with dropout and its like as in train mode
    ====  =====================================================================

    and remedies are ranked by what they did on samples that they did not see.

    Nothing of the model is changed: modes, buffers, hooks and random generators are as before, on exceptions too.
    Three passes over each loader; memory does not grow with the number of batches.

    Args:
        model: any module.
        loader: the data the model is judged on, in batches as large as those it was trained with (or pass
            ``batch_size``). Where no ``train_loader`` is given, it stands for the training data too.
        metric: ``"accuracy"``, or ``metric(output, labels)`` giving a score for each sample or one for the batch;
            higher is better.
        domains: loaders by the name of the domain, where inputs of several kinds go through the same layers.
        train_loader: the training data, with its augmentation; by it, other data is told from old statistics.
        held_out: labelled data to score remedies on; by default ``loader`` where there is a ``train_loader``, else the
            second half of its batches.
        optimizer: to read the number of steps from, where its state counts them.
        steps: steps of the optimizer since the statistics began.
        batch_size: samples a batch in training.
        ranks: state dicts of the processes; by default those of ``torch.distributed``, where it is initialized.
        forward: ``forward(model, batch)`` where the first element of a batch is not what goes in.
        device: where batches are moved to; by default to the model.
        counterfactuals: score the model under other statistics, if there is a metric.
        progress: called with the name of the pass and the number of the batch.

    Returns:
        The report; a model without running statistics is ``healthy``, and the report says why.

    Raises:
        NoStatistics: a loader is empty.
        DomainError: fewer than two domains, or one without samples.
        NonFiniteStatistics: the data, or an activation on it, is NaN or infinite; the first layer is named.
        NormsError: the loader is an iterator, labels are missing for the metric, or a batch holds one value a channel.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> loader = [3 + torch.randn(32, 4) for _ in range(8)]
        >>> diagnose(model, loader).cause
        'never-updated'

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm"; the test is derived in ``docs/norm-statistics.md``.
    """
    root = names.unwrap(model)
    facts = {path: LayerFacts.of(path, layer) for path, layer in tracked_layers(root).items()}
    if not facts:
        return _nothing(root)
    cured = non_finite(facts)
    feeds = _Feeds(loader, train_loader, held_out, domains, forward, device)
    updates = {path: layer.updates for path, layer in facts.items()}
    common: dict[str, Any] = {"batch_size": batch_size, "updates": updates, "progress": progress}
    train = look(model, feeds.train, **common)
    data = look(model, feeds.data, **common) if train_loader is not None else train
    reached = {path: facts[path] for path in data.layers if path in facts}
    evidence = Evidence(
        facts=reached,
        train=train,
        data=data,
        domains={name: look(model, feed, **common) for name, feed in feeds.domains.items()},
        steps=steps if steps is not None else _steps_of(optimizer),
        batch_size=batch_size or train.batch_samples,
        ranks=_rank_distances(root, reached, ranks),
    )
    causes = (cured,) if cured is not None else judge(evidence)
    tables: tuple[tuple[Counterfactual, ...], tuple[RemedyRow, ...]] = ((), ())
    if metric is not None and counterfactuals:
        tables = _score(model, feeds, evidence, metric, causes)
    elif causes[0].name != "healthy":
        tables = ((), tuple(unmeasured([c.name for c in causes], [_recalibration(evidence)])))
    return NormReport(
        causes=causes,
        layers=_layer_rows(root, evidence),
        counterfactuals=tables[0],
        remedies=tables[1],
        worst=_worst_channels(evidence),
        notes=_notes(facts, evidence, metric, tables[1] if causes[0].name != "healthy" else ()),
        model_type=type(root).__name__,
    )


@dataclass(frozen=True)
class _Feeds:
    """The loaders of one diagnosis."""

    loader: Iterable[Any]
    train_loader: Iterable[Any] | None
    held_out: Iterable[Any] | None
    domain_loaders: Mapping[str, Iterable[Any]] | None
    forward: Forward | None
    device: torch.device | str | None

    def _feed(self, loader: Any) -> Feed:
        return Feed(loader, self.forward, self.device).several_passes("the diagnosis")

    @property
    def data(self) -> Feed:
        """What the model is judged on."""
        return self._feed(self.loader)

    @property
    def train(self) -> Feed:
        """What it was trained on, as far as is known."""
        return self._feed(self.loader if self.train_loader is None else self.train_loader)

    @property
    def domains(self) -> dict[str, Feed]:
        """Each domain by itself."""
        if self.domain_loaders is None:
            return {}
        if len(self.domain_loaders) < 2:
            raise DomainError(
                f"domains were given, and there is only one: {', '.join(self.domain_loaders)}\n"
                "  fix: name at least two, or pass its data as the loader"
            )
        return {name: self._feed(loader) for name, loader in self.domain_loaders.items()}

    def halves(self, batches: int) -> tuple[Feed, Feed]:
        """Batches to estimate on, and batches that are kept to score on."""
        if self.held_out is not None:
            return self.data, self._feed(self.held_out)
        if self.train_loader is not None or batches < 2:
            return self.data, self.data
        middle = batches // 2
        return self._feed(Slice(self.loader, 0, middle)), self._feed(Slice(self.loader, middle))


def _score(
    model: nn.Module, feeds: _Feeds, evidence: Evidence, metric: Metric, causes: tuple[CauseRow, ...]
) -> tuple[tuple[Counterfactual, ...], tuple[RemedyRow, ...]]:
    estimate_on, score_on = feeds.halves(evidence.data.batches)
    bench = Bench(model, score_on, metric)
    base = None if causes[0].name == "non-finite" else bench.as_it_is()
    trials: list[Trial] = []
    rows: list[Counterfactual] = [] if base is None else [row("E0", "running, as they are", base, None)]
    if feeds.train_loader is not None:
        trained = statistics_from(evidence.train)
        trials.append(Trial("recalibrate on the training data", trained, "frostline.recalibrate(model, train_loader)"))
        rows.append(row("E1", "of the training data", bench.under(trained), base))
    with untouched(model) as root, random_state_kept():
        here = measure_statistics(root, estimate_on)
    trials.append(Trial("recalibrate on this data", here, "frostline.recalibrate(model, loader)"))
    rows.append(row("E2", "of this data", bench.under(here), base))
    rows.append(row("E3", f"of each batch of {evidence.data.batch_samples}", bench.with_batch_statistics(), base))
    if evidence.domains:
        rows += _score_domains(model, feeds, evidence, metric)
    rest = bench.with_the_rest_in_train_mode() if base is not None else None
    if rest is not None:
        rows.append(row("E5", "running, with dropout as in train mode", rest, base))
    if base is not None and causes[0].name != "healthy":
        rows += [
            row("E2", f"of this data in {path} alone", bench.under({path: here[path]}), base)
            for path in _worst(evidence, off_layers(evidence.data))[:SWAPPED]
            if path in here
        ]
    remedies = measured(bench, trials) if base is not None else []
    done = {remedy.name for remedy in remedies}
    more = unmeasured([cause.name for cause in causes], [] if base is not None else trials)
    return tuple(rows), (*remedies, *(remedy for remedy in more if remedy.name not in done))


def _score_domains(model: nn.Module, feeds: _Feeds, evidence: Evidence, metric: Metric) -> list[Counterfactual]:
    """Each domain with the shared statistics, and with its own."""
    found: list[Counterfactual] = []
    for name, feed in feeds.domains.items():
        batches = evidence.domains[name].batches
        middle = max(batches // 2, 1) if batches > 1 else 0
        bench = Bench(model, feeds._feed(Slice(feed.loader, middle)), metric)
        with untouched(model) as root:
            own: Statistics = measure_statistics(root, feeds._feed(Slice(feed.loader, 0, middle or None)))
        base = bench.as_it_is()
        found.append(row("E0", f"running, on {name}", base, None))
        found.append(row("E4", f"of {name}, on {name}", bench.under(own), base))
    return found


def _recalibration(evidence: Evidence) -> Trial:
    return Trial("recalibrate", statistics_from(evidence.train), "frostline.recalibrate(model, loader)")


def _layer_rows(root: nn.Module, evidence: Evidence) -> tuple[NormLayerRow, ...]:
    layers = tracked_layers(root)
    off = set(off_layers(evidence.data))
    rows: list[NormLayerRow] = []
    for path, found in evidence.data.layers.items():
        facts = evidence.facts[path]
        rows.append(
            NormLayerRow(
                path=path,
                type=facts.type,
                channels=len(facts.mean),
                momentum=facts.momentum,
                updates=facts.count,
                policy=str(policy_of(layers[path])),
                effect=found.fit_alone.effect,
                effect_in_eval=None if found.fit_in_eval is None else found.fit_in_eval.effect,
                noise=found.fit_alone.noise,
                batch_noise=found.fit_alone.batch_noise,
                p_value=found.fit_alone.p_value,
                off=path in off,
            )
        )
    return tuple(rows)


def _worst_channels(evidence: Evidence) -> dict[str, list[Channel]]:
    """Of the layers that are off most: running and measured mean and standard deviation of each channel."""
    found: dict[str, list[Channel]] = {}
    for path in _worst(evidence, list(evidence.data.layers))[:DRAWN]:
        layer = evidence.data.layers[path]
        facts, population = evidence.facts[layer.path], layer.alone.moments
        assert population is not None
        columns = (facts.mean, facts.var.sqrt(), population.mean, population.var().sqrt())
        found[layer.path] = [tuple(channel) for channel in torch.stack([c.cpu() for c in columns], 1).tolist()]
    return found


def _worst(evidence: Evidence, paths: list[str]) -> list[str]:
    return sorted(paths, key=lambda path: -evidence.data.layers[path].fit_alone.effect)


def _rank_distances(
    root: nn.Module, facts: Mapping[str, LayerFacts], ranks: Sequence[Mapping[str, Tensor]] | None
) -> dict[str, float]:
    if ranks is None:
        if world_size() < 2:
            return {}
        mine = {name: buffer.detach().cpu() for name, buffer in root.named_buffers()}
        ranks = gathered(mine)
    layers = {path: layer for path, layer in tracked_layers(root).items() if path in facts}
    return {path: found.effect for path, found in rank_differences(layers, ranks).items()}


def _steps_of(optimizer: Optimizer | None) -> int | None:
    """Adam and its kin count their steps; SGD does not."""
    if optimizer is None:
        return None
    counts = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    return max(counts, default=None)


def _notes(
    facts: Mapping[str, LayerFacts], evidence: Evidence, metric: Metric, remedies: tuple[RemedyRow, ...]
) -> tuple[str, ...]:
    notes: list[str] = []
    missing = [path for path in facts if path not in evidence.facts]
    if missing:
        notes.append(f"no batch came through: {', '.join(str(f) for f in names.fold(missing))}")
    if not evidence.compared:
        notes.append(
            "the data stands for the training data too; pass train_loader to tell other data from old statistics"
        )
    tried = [remedy for remedy in remedies if remedy.measured is not None]
    if tried and not any(remedy.advice == "apply" for remedy in tried):
        notes.append("none of the statistics that were tried is better than those the model has")
    if metric is None:
        notes.append("without a metric no remedy was measured")
    return tuple(notes)


def _nothing(root: nn.Module) -> NormReport:
    return NormReport(
        causes=(
            CauseRow(
                "healthy",
                1.0,
                f"{type(root).__name__} has no layer that keeps running statistics: eval and train "
                "mode cannot differ by them",
            ),
        ),
        layers=(),
        model_type=type(root).__name__,
    )
