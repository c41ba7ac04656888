"""Names of tensors grouped by the module that they belong to, and what each is for there, told from names and shapes.

A module is the unit in which names are compared: the tensors of a batch norm never go separate ways. Knows names and
shapes; knows nothing of files or live models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from frostline.state import names

# What other libraries call the entries of a module, by their roles.
ROLES: Mapping[str, str] = {
    "weight": "weight",
    "gamma": "weight",
    "scale": "weight",
    "bias": "bias",
    "beta": "bias",
    "offset": "bias",
    "running_mean": "mean",
    "moving_mean": "mean",
    "running_var": "var",
    "moving_var": "var",
    "moving_variance": "var",
    "num_batches_tracked": "count",
}
STATISTICS = frozenset({"mean", "var", "count"})


@dataclass(frozen=True)
class Unit:
    """The tensors of one module.

    Attributes:
        path: of the module; empty for tensors at the root.
        leaves: role to the full name of the tensor. A name that is not known is its own role.
        shapes: role to shape.
        kind: ``norm`` (statistics, or a weight of one dimension), ``linear`` (two), ``conv`` (three and more), else
            ``other``.
        order: how many modules come before it.
    """

    path: str
    leaves: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    kind: str
    order: int

    @property
    def has_statistics(self) -> bool:
        """Whether it normalizes with running statistics."""
        return {"mean", "var"} <= self.leaves.keys()


def units_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Unit]:
    """Group names by module.

    Args:
        shapes: name to shape, in the order of the checkpoint or model.

    Returns:
        Path to :class:`Unit`, in the order in which the modules first appear.

    Example:
        >>> units = units_of({"bn.weight": (4,), "bn.bias": (4,), "bn.running_mean": (4,), "bn.running_var": (4,)})
        >>> units["bn"].kind, list(units["bn"].leaves)
        ('norm', ['weight', 'bias', 'mean', 'var'])
    """
    leaves: dict[str, dict[str, str]] = {}
    for name in shapes:
        leaves.setdefault(names.parent(name), {})[name.rpartition(".")[2]] = name
    found: dict[str, Unit] = {}
    for order, (path, own) in enumerate(leaves.items()):
        roles: dict[str, str] = {}
        for leaf, name in own.items():
            role = ROLES.get(leaf, leaf)
            # Two names of one role (`weight` and `scale`) are two roles after all.
            roles[leaf if role in roles or role in own else role] = name
        sizes = {role: tuple(shapes[name]) for role, name in roles.items()}
        found[path] = Unit(path, roles, sizes, _kind(sizes), order)
    return found


def role_in(unit: Unit, role: str) -> str:
    """A role as reports and ``fl.inventory`` name it: ``norm.mean`` rather than ``mean``.

    Example:
        >>> unit = units_of({"fc.weight": (2, 3)})["fc"]
        >>> role_in(unit, "weight")
        'weight'
    """
    if role in STATISTICS or (unit.kind == "norm" and role in {"weight", "bias"}):
        return f"norm.{role}"
    return role if role in {"weight", "bias"} else "parameter"


def _kind(sizes: Mapping[str, tuple[int, ...]]) -> str:
    if {"mean", "var"} <= sizes.keys():
        return "norm"
    dimensions = len(sizes.get("weight", ()))
    return {0: "other", 1: "norm", 2: "linear"}.get(dimensions, "conv")
