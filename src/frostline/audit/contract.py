"""What is meant to stay: declared by the user, or inferred from holds, flags, modes and optimizers."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.state.selection import Selector


@dataclass(frozen=True)
class Contract:
    """What was declared; what it is silent about is inferred, and then said to be inferred.

    Attributes:
        frozen: the parts whose parameters and buffers must stay equal to the bit.
        moving: parts of them that may move all the same: statistics that are adapted on purpose, a codebook. Of these
            no mode is inferred either.
        eval: the parts that must stay in eval mode.

    Example:
        >>> Contract(frozen=("backbone",), moving=("backbone.*.running_*",)).frozen
        ('backbone',)
    """

    frozen: tuple[Selector, ...] = ()
    moving: tuple[Selector, ...] = ()
    eval: tuple[Selector, ...] = ()


# Why an entry must stay, from the firmest to the weakest ground. An inferred one ends where the part is unfrozen, or
# an optimizer takes it up, and is back while it is frozen again.
REASONS = {
    "hold": "a hold is on it",
    "declared": "the contract names it",
    "requires_grad": "requires_grad was False at the first training step",
    "optimizer": "no optimizer has the parameters of its module",
    "eval": "its module was put into eval mode before the first training step",
}
INFERRED = frozenset({"requires_grad", "optimizer", "eval"})
