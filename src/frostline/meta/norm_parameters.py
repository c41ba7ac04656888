"""What a statistics policy adds to a model to be learned: weight and bias for each inner step, task norm's blend."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from frostline.meta.policy import Policy


class NormParameters(nn.Module):
    """Parameters of the outer loop that belong to the governed layers and are not the model's own.

    Args:
        layers: the governed layers by path.
        policy: what meta-training normalizes with; ``per_step`` in it makes weight and bias of shape (steps + 1, C) for
            each layer that has them, beginning with the layer's own; task norm makes two numbers a layer.
        steps: inner steps; the last row is the query pass's.

    Attributes:
        per_step: whether there are weights and biases for each step.

    Example:
        >>> layers = {"bn": nn.BatchNorm1d(4)}
        >>> [tuple(p.shape) for p in NormParameters(layers, Policy.of("per_step"), steps=2).parameters()]
        [(3, 4), (3, 4)]
        >>> NormParameters(layers, Policy.of("task_norm_i"), steps=2).shares(5)["bn"].item()
        0.5
    """

    def __init__(self, layers: Mapping[str, _BatchNorm], policy: Policy, steps: int) -> None:
        super().__init__()
        self._paths = tuple(layers)
        self.per_step = "per_step" in policy.sources
        # Names of parameters may not hold dots, so all go by the place of their layer.
        own: dict[str, nn.Parameter] = {}
        self._affine: dict[str, tuple[str, str]] = {}
        for place, (path, layer) in enumerate(layers.items()):
            if self.per_step and layer.affine:
                for name in ("weight", "bias"):
                    rows = getattr(layer, name).detach().expand(steps + 1, -1).clone()
                    own[f"{name}_{place}"] = nn.Parameter(rows)
                    self._affine[f"{path}.{name}" if path else name] = (f"{name}_{place}", path)
        self.affine = nn.ParameterDict(own)
        blends = any(source.startswith("task_norm") for source in policy.sources)
        like = next((p for layer in layers.values() for p in layer.parameters()), torch.zeros(()))
        self.blends = nn.ParameterList(torch.zeros(2).to(like.detach()) for _ in (layers if blends else ()))

    @property
    def replaced(self) -> frozenset[str]:
        """Paths of the model's own parameters whose place the per-step ones take."""
        return frozenset(self._affine)

    def affine_of(self, step: int | None) -> dict[str, Tensor]:
        """Weights and biases for an inner step, counted from 0, or for the query pass (``None``), by path."""
        found: dict[str, Tensor] = {}
        for path, (name, _) in self._affine.items():
            rows = self.affine[name]
            found[path] = rows[-1] if step is None else rows[min(step, len(rows) - 2)]
        return found

    def shares(self, examples: int) -> dict[str, Tensor]:
        """The weight of the support set in task norm, for each layer: sigmoid(scale * examples + offset).

        Source: Bronskill et al. 2020, "TaskNorm", equation 8. Without anything learned it is one half.
        """
        if not len(self.blends):
            return dict.fromkeys(self._paths, torch.tensor(0.5))
        return {
            path: torch.sigmoid(blend[0] * examples + blend[1])
            for path, blend in zip(self._paths, self.blends, strict=True)
        }
