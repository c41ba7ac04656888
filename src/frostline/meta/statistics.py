"""The statistics that meta-training keeps, as a value that is replaced and never written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frostline.errors import MetaError
from frostline.meta.functional_model import governed_layers, own_statistics
from frostline.meta.normalizing import LayerStatistics

Observed = Sequence[Mapping[str, LayerStatistics]]
"""What one task's passes met: one mapping for each inner step and one for the query pass, by path of the layer."""

_KINDS = ("running", "per_step", "population")


@dataclass(frozen=True, eq=False)
class KeptStatistics:
    """Statistics of every governed layer, as meta-training left them.

    Attributes:
        frozen: the model's own buffers; a layer that has none is left out.
        running: one moving average over all passes in their order, which is what PyTorch's buffers would hold if the
            tasks had run on the model itself: variances divided by one less than the count.
        per_step: the same moving average, for each inner step and (last) the query pass by itself.
        population: mean and variance over tasks, for each inner step and the query pass, by the law of total variance:
            what tasks differ by in their means is counted.
        updates: how many meta-batches went into them.
        share: the weight of a new meta-batch in ``population``.
    """

    frozen: Mapping[str, LayerStatistics]
    running: Mapping[str, LayerStatistics]
    per_step: tuple[Mapping[str, LayerStatistics], ...]
    population: tuple[Mapping[str, LayerStatistics], ...]
    updates: int = 0
    share: float = 0.1

    @staticmethod
    def of(model: nn.Module, steps: int) -> KeptStatistics:
        """What a model starts with: its own buffers, or mean 0 and variance 1 where it has none.

        Example:
            >>> kept = KeptStatistics.of(nn.BatchNorm1d(2), steps=3)
            >>> len(kept.per_step), kept.running[""].var.tolist()
            (4, [1.0, 1.0])
        """
        layers = governed_layers(model)
        owned = {path: own_statistics(layer) for path, layer in layers.items()}
        start: dict[str, LayerStatistics] = {}
        for path, layer in layers.items():
            like = next((t for t in (*layer.parameters(), *model.parameters())), torch.zeros(()))
            found = owned[path]
            ones = torch.ones(layer.num_features, dtype=like.dtype, device=like.device)
            start[path] = LayerStatistics(torch.zeros_like(ones), ones) if found is None else found
        each = tuple(start for _ in range(steps + 1))
        return KeptStatistics({p: s for p, s in owned.items() if s is not None}, start, each, each)

    def updated(self, tasks: Sequence[Observed], momenta: Mapping[str, float | None]) -> KeptStatistics:
        """The statistics after one more meta-batch.

        Args:
            tasks: what each task's passes met, in the order of the tasks.
            momenta: each layer's weight of a new batch in the moving averages; ``None`` averages all batches alike.

        Example:
            >>> from frostline.meta.normalizing import of_batch
            >>> kept, x = KeptStatistics.of(nn.BatchNorm1d(1), steps=0), torch.tensor([[1.0], [3.0]])
            >>> kept.updated([[{"": of_batch(x)}]], {"": 0.5}).running[""].mean.item()
            1.0
        """
        if not tasks:
            return self
        running, per_step = dict(self.running), [dict(step) for step in self.per_step]
        passes, before = len(self.per_step), self.updates * len(tasks)
        for path in self.running:
            momentum = momenta[path]
            met = [(p, s, task[s][path]) for p, task in enumerate(tasks) for s in range(passes) if path in task[s]]
            shares = [1 / ((before + p) * passes + s + 1) if momentum is None else momentum for p, s, _ in met]
            running[path] = _moved(running[path], [layer for _, _, layer in met], shares)
            for step, now in enumerate(per_step):
                own = [(p, layer) for p, s, layer in met if s == step]
                shares = [1 / (before + p + 1) if momentum is None else momentum for p, _ in own]
                now[path] = _moved(now[path], [layer for _, layer in own], shares)
        share = self.share if self.updates else 1.0
        met = population_of(tasks)
        population = tuple(
            {path: _mixed(now[path], met[step][path], share) if path in met[step] else now[path] for path in now}
            for step, now in enumerate(self.population)
        )
        return KeptStatistics(self.frozen, running, tuple(per_step), population, self.updates + 1, self.share)

    def with_population(self, population: Sequence[Mapping[str, LayerStatistics]]) -> KeptStatistics:
        """The same with other population statistics, such as :func:`frostline.meta.measure_population` measures."""
        kept = tuple(population)
        return KeptStatistics(self.frozen, self.running, self.per_step, kept, self.updates, self.share)

    def of_source(self, source: str, step: int | None) -> Mapping[str, LayerStatistics]:
        """The statistics of a source for an inner step, counted from 0, or for the query pass (``None``).

        Steps beyond those of training take the last one's.
        """
        if source == "frozen":
            return self.frozen
        if source == "running":
            return self.running
        table = self.per_step if source == "per_step" else self.population
        return table[-1] if step is None else table[min(step, len(table) - 2)]

    def tensors(self) -> dict[str, Tensor]:
        """All values by name, for a file."""
        found: dict[str, Tensor] = {"updates": torch.tensor(self.updates)}
        for kind, step, path, layer in self._rows():
            found[f"{kind}.{step}.{path}.mean"] = layer.mean
            found[f"{kind}.{step}.{path}.var"] = layer.var
        return found

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> KeptStatistics:
        """Statistics of the same layers and steps with the values of a file.

        Raises:
            MetaError: the names or shapes are not those that this model and its steps have.
        """
        own = self.tensors()
        wrong = sorted(own.keys() ^ tensors.keys()) or [k for k in own if own[k].shape != tensors[k].shape]
        if wrong:
            raise MetaError(
                f"the statistics kept in the file are of other layers or another number of steps: {wrong[0]!r} is not "
                f"in both, or has another shape ({len(wrong)} such)\n"
                "  fix: the model and steps that they were kept with"
            )
        tables: dict[str, list[dict[str, LayerStatistics]]] = {
            kind: [{} for _ in range(len(self.per_step))] for kind in _KINDS
        }
        for kind, step, path, layer in self._rows():
            mean, var = (tensors[f"{kind}.{step}.{path}.{name}"].to(layer.mean).clone() for name in ("mean", "var"))
            tables[kind][step][path] = LayerStatistics(mean, var, layer.count)
        updates = int(tensors["updates"])
        per_step, population = tuple(tables["per_step"]), tuple(tables["population"])
        return KeptStatistics(self.frozen, tables["running"][0], per_step, population, updates, self.share)

    def to(self, like: Mapping[str, Tensor]) -> KeptStatistics:
        """The same on the device, and in the dtype, of a tensor for each layer."""

        def moved(table: Mapping[str, LayerStatistics]) -> dict[str, LayerStatistics]:
            return {
                path: LayerStatistics(layer.mean.to(like[path]), layer.var.to(like[path]), layer.count)
                for path, layer in table.items()
            }

        per_step, population = (tuple(map(moved, table)) for table in (self.per_step, self.population))
        return KeptStatistics(moved(self.frozen), moved(self.running), per_step, population, self.updates, self.share)

    def _rows(self) -> list[tuple[str, int, str, LayerStatistics]]:
        tables: dict[str, Sequence[Mapping[str, LayerStatistics]]]
        tables = {"running": [self.running], "per_step": self.per_step, "population": self.population}
        return [
            (kind, step, path, layer)
            for kind, table in tables.items()
            for step, layers in enumerate(table)
            for path, layer in layers.items()
        ]


def population_of(tasks: Sequence[Observed]) -> list[dict[str, LayerStatistics]]:
    """The statistics of all tasks' values together, for each pass by itself.

    Example:
        >>> from frostline.meta.normalizing import of_batch
        >>> one, two = of_batch(torch.tensor([[1.0], [3.0]])), of_batch(torch.tensor([[5.0], [7.0]]))
        >>> population_of([[{"bn": one}], [{"bn": two}]])[0]["bn"].var.item()
        5.0
    """
    return [
        {path: _together([task[step][path] for task in tasks if path in task[step]]) for path in tasks[0][step]}
        for step in range(len(tasks[0]))
    ]


def _together(layers: Sequence[LayerStatistics]) -> LayerStatistics:
    """The statistics of the values of several sets: the mean of the variances, and the variance of the means."""
    count = sum(layer.count for layer in layers)
    means, variances = (torch.stack(each) for each in zip(*((one.mean, one.var) for one in layers), strict=True))
    shares = means.new_tensor([layer.count / count for layer in layers])
    mean = shares @ means
    return LayerStatistics(mean, shares @ (variances + (means - mean).square()), count)


def _moved(old: LayerStatistics, new: Sequence[LayerStatistics], shares: Sequence[float]) -> LayerStatistics:
    """A moving average that takes in one after the other, each with its share; all in one product of matrices."""
    if not new:
        return old
    left, weights = 1.0, list[float]()
    for share in reversed(shares):
        weights.append(left * share)
        left *= 1 - share
    # Variances divided by one less than the count, as PyTorch keeps them.
    means, variances = torch.stack([one.mean for one in new]), torch.stack([one.unbiased for one in new])
    by = means.new_tensor(weights[::-1])
    return LayerStatistics(left * old.mean + by @ means, left * old.var + by @ variances, old.count)


def _mixed(old: LayerStatistics, new: LayerStatistics, share: float) -> LayerStatistics:
    """The statistics of a mixture of two sets of values."""
    if share == 1.0:
        return new
    delta = new.mean - old.mean
    var = old.var * (1 - share) + new.var * share + delta.square() * (share * (1 - share))
    return LayerStatistics(old.mean + delta * share, var, new.count)
