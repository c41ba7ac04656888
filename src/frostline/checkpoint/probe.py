"""Do running statistics describe what reaches the layers? A wrong mapping of names shows here, if nowhere else.

Statistics that landed in the wrong layers, or beside the wrong weights, are far from those of any real batch.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from frostline.errors import NoStatistics
from frostline.norms.moments import Moments, population_moments
from frostline.state import names
from frostline.tables import html_text, text_table

# The real ResNet-20 measures 0.02 on 250 images (its worst layer 0.09), 76 with the two norms of each block exchanged
# (31,000), and 0.2 with those of one block (380). At 1, two normal distributions have little in common.
LIMIT = 1.0


@dataclass(frozen=True)
class ProbedLayer:
    """One layer.

    Attributes:
        path: of the layer.
        divergence: mean over its channels of KL(batch || running), in nats.
    """

    path: str
    divergence: float


@dataclass(frozen=True)
class Probe:
    """What a few batches say.

    Attributes:
        divergence: the median over all layers; about 0.02 where statistics and weights belong together.
        layers: each layer, the worst first.
    """

    divergence: float
    layers: tuple[ProbedLayer, ...]

    @property
    def plausible(self) -> bool:
        """Whether the statistics of every layer describe the data. Data of quite another kind is implausible too."""
        return self.layers[0].divergence < LIMIT

    def __str__(self) -> str:
        word = (
            "statistics and weights belong together" if self.plausible else "a wrong mapping, or data of another kind"
        )
        worst = [[layer.path, layer.divergence] for layer in self.layers[:5]]
        head = (
            f"running against batch statistics: divergence {self.divergence:.3g} over {len(self.layers)} layers: {word}"
        )
        return f"{head}\n{text_table(['worst layers', 'divergence'], worst)}"

    def _repr_html_(self) -> str:
        return html_text(self)


def probe_statistics(model: nn.Module, batches: Iterable[Any]) -> Probe:
    """Compare running statistics with those of a few real batches.

    The model is run in eval mode without gradients; nothing of it is changed.

    Args:
        model: any model with running statistics, on the device of the batches.
        batches: as :func:`frostline.norms.moments.population_moments` takes them; a list of one batch will do.

    Returns:
        The :class:`Probe`.

    Raises:
        NoStatistics: the model has none, or there is no data.

    Example:
        >>> import torch
        >>> norm = nn.Sequential(nn.BatchNorm1d(2))
        >>> torch.manual_seed(0) and None
        >>> probe_statistics(norm, [torch.randn(512, 2)]).plausible
        True
        >>> _ = norm[0].running_mean.fill_(9)
        >>> probe_statistics(norm, [torch.randn(512, 2)]).plausible
        False

    Source:
        The divergence of two normal distributions, KL(p || q) = (v/w + (m-n)^2/w - 1 - ln(v/w)) / 2.
    """
    moments = population_moments(model, batches, upstream="running")
    root = names.unwrap(model)
    layers = [
        ProbedLayer(path, divergence)
        for path, seen in moments.items()
        if (divergence := _divergence(root.get_submodule(path), seen)) is not None
    ]
    if not layers:
        raise NoStatistics("probe: no layer that the batches come through has running statistics\n  fix: another check")
    layers.sort(key=lambda layer: -layer.divergence)
    return Probe(statistics.median(layer.divergence for layer in layers), tuple(layers))


def _divergence(layer: nn.Module, seen: Moments) -> float | None:
    """Mean over channels of KL(batch || running)."""
    mean, var, eps = (getattr(layer, name, None) for name in ("running_mean", "running_var", "eps"))
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        return None
    eps = eps if isinstance(eps, float) else 0.0
    # With eps, as the layer itself has it: a channel that is always 0 divides by that.
    batch, running = seen.var().cpu() + eps, var.detach().double().cpu() + eps
    gap = (seen.mean.cpu() - mean.detach().double().cpu()) ** 2
    ratio = batch / running
    return float((ratio + gap / running - 1 - ratio.log()).mean() / 2)
