"""What of a model is a frozen prefix, why the rest is not, and what each shortcut would save."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

import torch
from torch import nn

from frostline.errors import NoPrefix, name_some
from frostline.fast.cut import Blocked, Cut, find_cut
from frostline.fast.example_inputs import example_inputs
from frostline.fast.features import Place
from frostline.fast.prefix import Prefix
from frostline.fast.savings import Saving, time_savings
from frostline.fast.variants import variant_of
from frostline.state import names
from frostline.state.arguments import arguments_of
from frostline.state.inventory import SCHEMA_VERSION
from frostline.tables import html_table, text_table

ROWS = 32
_MOST = 6


@dataclass(frozen=True)
class PrefixPlan:
    """The longest frozen prefix of a model; it prints itself.

    Attributes:
        modules: the outermost modules of it, in the order of the run.
        places: what crosses its boundary.
        rest: why the other parts of the model are not in it, in the order of the run.
        savings: what each shortcut would save; empty where nothing was timed.
    """

    modules: tuple[str, ...]
    places: tuple[Place, ...]
    rest: tuple[Blocked, ...]
    savings: tuple[Saving, ...]
    _root: nn.Module = field(repr=False)
    _cut: Cut = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the features of one sample."""
        return sum(place.nbytes for place in self.places)

    def prefix(self, *words: str, autocast: torch.dtype | None = None, rows: int = ROWS) -> Prefix:
        """The prefix as something that can be called.

        Args:
            *words: ``"folded"``, ``"channels_last"``, ``"compiled"``; none for the plain prefix, which gives the bits
                of the model itself. Each of them runs on a copy: check it on real samples with
                :meth:`~frostline.fast.prefix.Prefix.check`.
            autocast: a narrower type to compute in.
            rows: how many samples are computed at a time.

        Raises:
            FastError: there is no such variant, or nothing to fold.
        """
        return Prefix(self._root, self._cut, rows=rows, variant=variant_of(words, autocast))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready values with a schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "modules": list(self.modules),
            "places": [{**place.to_json(), "nbytes": place.nbytes} for place in self.places],
            "rest": [asdict(row) for row in self.rest],
            "savings": [asdict(row) for row in self.savings],
        }

    def __repr__(self) -> str:
        return self._head().partition("\n")[0]

    def __str__(self) -> str:
        return "\n".join([self._head(), *([text_table(_COLUMNS, self._rows())] if self.savings else [])])

    def _head(self) -> str:
        modules = [str(each) for each in names.fold(self.modules)] if self.modules != ("",) else ["the whole model"]
        lines = [f"frozen prefix of {type(self._root).__name__}: {name_some(modules, rest='plan.modules')}"]
        lines += [f"  boundary: {place}, {place.nbytes:,} bytes a sample" for place in self.places]
        rest = _folded(self._root, self.rest)
        lines += [f"  not in it: {row}" for row in rest[:_MOST]]
        lines += [f"  (+{len(rest) - _MOST} more; plan.rest)"] if len(rest) > _MOST else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        table = html_table(_COLUMNS, self._rows(), caption="what each shortcut would save") if self.savings else ""
        return f"<pre>{escape(self._head())}</pre>{table}"

    def _rows(self) -> list[list[object]]:
        plain = self.savings[0]
        return [
            [
                row.name,
                _milliseconds(row.prefix_seconds),
                _milliseconds(row.step_seconds),
                None if (fast := row.times_as_fast(plain)) is None else f"{fast:.2f}",
                row.note or ("equal to the bit" if row.difference == 0 else f"differs by {row.difference:.1g}"),
            ]
            for row in self.savings
        ]


_COLUMNS = ["prefix", "ms a sample", "whole step", "times as fast", "features"]


def plan(model: nn.Module, inputs: Any = None, *, timing: bool = True) -> PrefixPlan:
    """Find the longest frozen prefix of a model: what is a function of its inputs and of frozen tensors alone.

    The model is run a few times on a few of the samples, as it is trained: in train mode, in which held parts stay in
    eval. Every operation is looked at, so branches, skips, several inputs and functions between modules are seen. A
    call of a module is in the prefix if nothing that trains goes into its result, it draws no random numbers, writes no
    state, gives the same for the same input, and a sample the same whatever the others of its batch are. The boundary
    is what the rest reads of it. Everything is as before afterwards: state, modes, gradients, random generators.

    Code that branches on the values of its inputs is seen only as it ran.

    Args:
        model: with the frozen part held by :func:`frostline.freeze`; wrappers are looked through.
        inputs: a batch of two samples or more: a tensor, a tuple of arguments or a mapping of keyword arguments. By
            default what the model says that it takes.
        timing: whether the shortcuts are timed, on all of the samples given; takes about ten forward passes.

    Returns:
        The :class:`PrefixPlan`.

    Raises:
        NoPrefix: nothing frozen comes first; the reasons are named.
        FastError: there are fewer than two samples, or the model does not say what it takes.

    Example:
        >>> import frostline as fl
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> hold = fl.freeze(model, "0", "1")
        >>> print(fl.fast.plan(model, torch.randn(4, 4), timing=False))
        frozen prefix of Sequential: [0-1] (x2)
          boundary: 1 (3,) float32, 12 bytes a sample
          not in it: 2: trains
    """
    root = names.unwrap(model)
    args, kwargs = example_inputs(root) if inputs is None else arguments_of(inputs)
    cut = find_cut(root, args, kwargs)
    if not cut.given:
        why = "\n".join(f"  {row}" for row in _folded(root, cut.blocked)[:_MOST])
        raise NoPrefix(
            f"plan: no part of {type(root).__name__} is a frozen prefix, for the first part is not frozen\n{why}\n"
            "  fix: hold the front part with frostline.freeze(model, ...), which also keeps it in eval mode"
        )
    found = PrefixPlan(cut.modules, cut.places, cut.blocked, (), root, cut)
    if not timing:
        return found
    savings = time_savings(root, found.prefix, args, kwargs)
    return PrefixPlan(cut.modules, cut.places, cut.blocked, savings, root, cut)


def _folded(root: nn.Module, rows: tuple[Blocked, ...]) -> list[str]:
    """One line for each part that trains as a whole, and one for each other reason."""
    modules = dict(root.named_modules())
    lines: list[str] = []
    for row in rows:
        parts = row.path.split(".")
        above = (".".join(parts[: n + 1]) for n in range(len(parts)))
        whole = (path for path in above if all(p.requires_grad for p in modules[path].parameters()))
        lines.append(f"{next(whole, row.path)}: trains" if row.trains and row.path else str(row))
    return list(dict.fromkeys(lines))


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds * 1e3:.3g}"
