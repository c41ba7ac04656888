"""One few-shot task: a support set to adapt on, a query set to be judged on, and where both came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


class Examples(NamedTuple):
    """Inputs with their labels.

    Attributes:
        inputs: shape (N, ...), for images (N, C, H, W).
        labels: int64 class indices 0 to way - 1, shape (N,).
    """

    inputs: Tensor
    labels: Tensor

    def to(self, *args: Any, **kwargs: Any) -> Examples:
        """Both on another device; a dtype is taken for the inputs alone.

        Example:
            >>> import torch
            >>> Examples(torch.zeros(2, 3), torch.tensor([0, 1])).to(torch.float64).labels.dtype
            torch.int64
        """
        inputs = self.inputs.to(*args, **kwargs)
        return Examples(inputs, self.labels.to(inputs.device))


@dataclass(frozen=True, eq=False)
class Task:
    """A way-way classification task of shot labelled examples a class.

    Attributes:
        support: what the learner adapts on, class after class, ``way * shot`` examples.
        query: what it is judged on, class after class, ``way * queries`` examples.
        way: number of classes.
        classes: their names; the place of a name is its label.
        split: the split that they were drawn from.
        index: which task of the split this is.
        seed: the only randomness of this task, a whole number below 2 ** 63; dropout is drawn from it.

    Example:
        >>> import torch
        >>> x, y = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> Task(Examples(x, y), Examples(x, y), way=2).classes
        ()
    """

    support: Examples
    query: Examples
    way: int
    classes: tuple[str, ...] = ()
    split: str = ""
    index: int = 0
    seed: int = 0

    def to(self, *args: Any, **kwargs: Any) -> Task:
        """The same task on another device, or with inputs of another dtype."""
        support, query = self.support.to(*args, **kwargs), self.query.to(*args, **kwargs)
        return Task(support, query, self.way, self.classes, self.split, self.index, self.seed)
