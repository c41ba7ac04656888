"""Learning rates of the inner loop that are learned in the outer one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from frostline.errors import MetaError
from frostline.meta.inner_optimizers import Rate

LearnRates = Literal["no", "parameter", "layer_step"]


class Rates(nn.Module):
    """The rate of each adapted parameter in each inner step.

    Args:
        adapted: the adapted parameters by path.
        start: the rate that all begin with.
        steps: inner steps of training; later ones take the last one's rates.
        learn: ``no``: one number. ``parameter``: a rate for each element of each tensor, which may change its sign
            (Meta-SGD: Li et al. 2017, section 3.1). ``layer_step``: a rate for each tensor and step (MAML++: Antoniou
            et al. 2019, section 4, "LSLR").

    Raises:
        MetaError: the rate is no finite positive number, or ``learn`` is unknown.

    Example:
        >>> rates = Rates({"w": nn.Parameter(torch.zeros(3))}, start=0.5, steps=2, learn="layer_step")
        >>> [tuple(p.shape) for p in rates.parameters()], rates.at(1)[0].item()
        ([(2,)], 0.5)
    """

    def __init__(self, adapted: Mapping[str, Tensor], *, start: float, steps: int, learn: LearnRates = "no") -> None:
        super().__init__()
        if not 0 < start < float("inf"):
            raise MetaError(f"inner_lr={start} is no rate\n  fix: a positive number, such as 0.4 for one step or 0.1")
        if learn not in ("no", "parameter", "layer_step"):
            raise MetaError(f"learn_rates={learn!r} is unknown\n  fix: 'no', 'parameter' or 'layer_step'")
        self.start = start
        self.steps = steps
        self.learn: LearnRates = learn
        self.paths = tuple(adapted)
        # Names of parameters may not hold dots, so they go by their place.
        self.values = nn.ParameterList(
            torch.full_like(p, start) if learn == "parameter" else torch.full((steps,), start).to(p)
            for p in (() if learn == "no" else [t.detach() for t in adapted.values()])
        )

    def at(self, step: int, only: Sequence[str] | None = None) -> Sequence[Rate]:
        """The rate of each adapted parameter, or of some of them, in a step, counted from 0."""
        paths = self.paths if only is None else only
        if self.learn == "no":
            return [self.start] * len(paths)
        value_of = dict(zip(self.paths, self.values, strict=True))
        if self.learn == "parameter":
            return [value_of[path] for path in paths]
        return [value_of[path][min(step, self.steps - 1)] for path in paths]
