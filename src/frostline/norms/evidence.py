"""What a diagnosis goes by: the layers' own state, and what the looks at the data showed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from frostline.norms.layers import running_statistics
from frostline.norms.look import LayerLook, Look
from frostline.norms.shift_test import output_distance

# An output that is off by less, in its own standard deviations, is not worth a word: the moving average of a healthy
# net lags behind its weights by as much.
MATERIAL = 0.08


@dataclass(frozen=True)
class LayerFacts:
    """The state of one layer, copied.

    Attributes:
        path: its dotted path.
        type: its class name.
        momentum: weight of the new value; ``None`` for cumulative averages.
        count: what ``num_batches_tracked`` says, ``None`` if there is none.
        dtype: of the running variance.
        mean: running mean, float64.
        var: running variance, float64.
        eps: the layer's.
        weight: its scale, if it has one.
    """

    path: str
    type: str
    momentum: float | None
    count: int | None
    dtype: torch.dtype
    mean: Tensor
    var: Tensor
    eps: float
    weight: Tensor | None

    @staticmethod
    def of(path: str, layer: nn.Module) -> LayerFacts:
        """Read one layer."""
        running = running_statistics(layer)
        assert running is not None
        mean, var = running
        counter = layer._buffers.get("num_batches_tracked")
        weight = getattr(layer, "weight", None)
        return LayerFacts(
            path=path,
            type=type(layer).__name__,
            momentum=getattr(layer, "momentum", None),
            count=None if counter is None else int(counter),
            dtype=var.dtype,
            mean=mean.detach().double(),
            var=var.detach().double(),
            eps=float(getattr(layer, "eps", 0.0)),
            weight=weight.detach() if isinstance(weight, Tensor) and weight.shape == mean.shape else None,
        )

    @property
    def finite(self) -> bool:
        """Whether the statistics are finite, and no variance is negative."""
        return bool(self.mean.isfinite().all() and self.var.isfinite().all() and (self.var >= 0).all())

    @property
    def as_built(self) -> bool:
        """Whether the statistics are those of a new layer."""
        return bool((self.mean == 0).all() and (self.var == 1).all())

    @property
    def updates(self) -> int | None:
        """How many updates the statistics have seen; ``None`` if unknown.

        Files from before PyTorch 0.4.1 have no counter, and load with 0.
        """
        return None if self.count == 0 and not self.as_built else self.count

    def distance(self, mean: Tensor, var: Tensor, to: tuple[Tensor, Tensor] | None = None) -> float:
        """How far the layer's output is off if it is given this population, by its own statistics or others."""
        running_mean, running_var = (self.mean, self.var) if to is None else to
        return output_distance(mean, var, running_mean, running_var, self.eps, self.weight)


@dataclass(frozen=True)
class Evidence:
    """Everything the rules may look at.

    Attributes:
        facts: the layers, in the order of the forward pass.
        train: the training data.
        data: the data that the model is judged on; the same object where no other was given.
        domains: a look at each domain.
        steps: steps of the optimizer since the statistics began.
        batch_size: samples a batch in training.
        ranks: by layer, how far the processes' statistics lie apart.
    """

    facts: Mapping[str, LayerFacts]
    train: Look
    data: Look
    domains: Mapping[str, Look] = field(default_factory=dict[str, Look])
    steps: int | None = None
    batch_size: int = 0
    ranks: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def compared(self) -> bool:
        """Whether training data and judged data are told apart."""
        return self.train is not self.data


def off_layers(look: Look, alpha: float = 0.001) -> list[str]:
    """The layers that are off by more than noise, and by enough to matter.

    Over many layers the share of false alarms among the alarms is kept at ``alpha`` (Benjamini & Hochberg 1995).
    """
    ranked = sorted(look.layers.values(), key=lambda layer: layer.fit_alone.p_value)
    passed = [i for i, layer in enumerate(ranked, 1) if layer.fit_alone.p_value <= alpha * i / len(ranked)]
    significant = {layer.path for layer in ranked[: max(passed, default=0)]}
    return [path for path, layer in look.layers.items() if path in significant and is_material(layer)]


def is_material(layer: LayerLook) -> bool:
    """Whether a layer is off by enough, and by more than its moving average scatters anyway."""
    return layer.fit_alone.effect >= max(MATERIAL, 1.5 * layer.fit_alone.noise)


def typical(values: Sequence[float]) -> float:
    """The median; 0 of nothing."""
    return float(torch.tensor(list(values), dtype=torch.float64).median()) if values else 0.0
