"""Parameter groups: each parameter once, in the order of the model, with the rate and decay that its place asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import nn

from frostline.errors import ModelError, name_some, printable
from frostline.optim.depth import By, Depths, depth_of
from frostline.state import names
from frostline.state.roles import role_of
from frostline.state.selection import Selector, select, strict_ancestors
from frostline.tables import html_table, text_table

SCHEMA_VERSION = 1
# What does not decay unless it is asked for: shifts and scales, which have no direction that could be too large.
_PLAIN_ROLES = frozenset({"bias", "norm.weight", "norm.bias", "rnn.bias"})


class ParamGroups(list[dict[str, Any]]):
    """Groups for an optimizer, made by :func:`param_groups`; prints itself as a table.

    Each is a dictionary with ``params``, ``param_names``, ``lr``, ``initial_lr``, ``weight_decay``, ``name`` and
    ``layer``.

    Attributes:
        depths: how deep each parameter lies.
        made: copies of the groups as they were made; an optimizer takes the groups themselves, and changes them.
    """

    depths: Depths
    made: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """The groups as JSON-ready values with a schema version; tensors are named."""
        rows = [
            {
                **{key: value for key, value in group.items() if key != "params"},
                "elements": _elements(group),
                "frozen": sum(not parameter.requires_grad for parameter in group["params"]),
            }
            for group in self
        ]
        return {"schema_version": SCHEMA_VERSION, "told_by": self.depths.told_by, "groups": rows}

    def __repr__(self) -> str:
        tensors = sum(len(group["params"]) for group in self)
        return f"{len(self)} groups, {tensors} tensors, depth by {self.depths.told_by}"

    def __str__(self) -> str:
        return f"{text_table(_COLUMNS, self._rows(), width=100)}\n{self!r}"

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows(), caption=f"depth by {self.depths.told_by}")

    def _rows(self) -> list[list[object]]:
        rows: list[list[object]] = []
        for group in self:
            frozen = sum(not parameter.requires_grad for parameter in group["params"])
            whole = frozen == len(group["params"])
            rows.append(
                [
                    group["name"],
                    group["layer"],
                    f"{group['lr']:.3g}",
                    f"{group['weight_decay']:.3g}",
                    len(group["params"]),
                    _elements(group),
                    "frozen" if whole else f"{frozen} of {len(group['params'])}" if frozen else "no",
                ]
            )
        return rows


_COLUMNS = ["group", "depth", "rate", "decay", "tensors", "elements", "frozen"]


def param_groups(
    model: nn.Module,
    lr: float,
    *,
    head: Selector | Sequence[Selector] | None = None,
    head_lr: float | None = None,
    layer_decay: float | None = None,
    weight_decay: float = 0.0,
    no_decay: Selector | Sequence[Selector] | None = None,
    by: By = "auto",
    example: Any = None,
    frozen: str = "in",
) -> ParamGroups:
    """Make the groups for an optimizer. Nothing of the model is changed.

    Each parameter is in exactly one group, tied ones under their first name; the groups come in the order of the model.
    Each has a real ``lr``, which torch's schedulers scale. What is frozen is in its group from the start, where it
    costs no optimizer state: unfreezing it later adds no group, so that schedulers and checkpoints stay right.

    Args:
        model: any module; wrappers are looked through.
        lr: the rate; with ``layer_decay`` that of the head, below which it falls.
        head: selectors of the head; by default the model's classifier, if it says or has a usual name.
        head_lr: the rate of the head; by default ``lr``.
        layer_decay: the factor between one layer and the one before it, 0 < factor <= 1; ``0.75`` for example. A
            parameter ``n`` layers before the head has ``lr * layer_decay ** n``. With 1.0 all rates are equal, and
            each layer still has groups of its own, which a warm-up after unfreezing needs.
        weight_decay: of what decays.
        no_decay: selectors of what does not decay; by default biases, normalization layers, parameters of one dimension
            and what the model itself names (``no_weight_decay()``). An empty list lets everything decay.
        by: how depth is told, see :func:`~frostline.optim.depth.depth_of`.
        example: inputs for one run, likewise.
        frozen: ``"in"``, or ``"out"`` to leave out what does not require gradients.

    Returns:
        The :class:`ParamGroups`, a list that optimizers take as it is.

    Raises:
        NothingSelected: a selector matches nothing.
        SelectionError: layers overlap, or leave parameters out.
        ModelError: a rate or decay is no number that makes sense, or nothing is left to train.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> groups = param_groups(model, 1e-3, head="2", head_lr=1e-2, layer_decay=0.5, weight_decay=0.05)
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups][1:3]
        [('layer 0, no decay', 0.0005, 0.0), ('head', 0.01, 0.05)]
        >>> len(param_groups(model, 0.1)[0]["params"])
        6

    Source:
        Layer-wise rates: Clark et al. 2020 (ELECTRA, arXiv 2003.10555), appendix; Bao et al. 2021 (BEiT, 2106.08254).
    """
    _check_rates(lr=lr, head_lr=head_lr, weight_decay=weight_decay, layer_decay=layer_decay, frozen=frozen)
    root = names.unwrap(model)
    depths = depth_of(root, by=by, head=head, example=example)
    if head_lr is not None and not depths.head:
        raise ModelError(
            f"param_groups(head_lr={head_lr}): {type(root).__name__} does not say which part is its head\n"
            "  fix: head= with its path"
        )
    if head_lr is not None and not depths.head & dict(root.named_parameters()).keys():
        raise ModelError(
            f"param_groups(head_lr={head_lr}): all of the head, {name_some(sorted(depths.head))}, is tied to "
            "parameters of the trunk, and a tensor has one rate\n  fix: leave out head_lr, or untie them"
        )
    deepest = depths.deepest
    spared = _spared(root, no_decay)
    groups: dict[tuple[object, bool], dict[str, Any]] = {}
    for name, parameter in root.named_parameters():  # each tensor once, under its first name
        if frozen == "out" and not parameter.requires_grad:
            continue
        depth, in_head = depths.of[name], name in depths.head
        rate = lr if layer_decay is None else lr * layer_decay ** (deepest - depth)
        rate = head_lr if in_head and head_lr is not None else rate
        # Without rates by layer, the layers of the trunk are one group.
        place: object = "head" if in_head else depth if layer_decay else "trunk"
        decays = id(parameter) not in spared and weight_decay > 0
        key = (place, decays)
        if key not in groups:
            title = f"layer {place}" if isinstance(place, int) else "all" if not depths.head else str(place)
            groups[key] = {
                "params": [],
                "lr": rate,
                "initial_lr": rate,
                "weight_decay": weight_decay if decays else 0.0,
                "name": title if decays or not weight_decay else f"{title}, no decay",
                "layer": depth,
                "param_names": [],
            }
        groups[key]["params"].append(parameter)
        groups[key]["param_names"].append(name)
        groups[key]["layer"] = max(groups[key]["layer"], depth)
    if not groups:
        raise ModelError(
            f"param_groups: nothing of {type(root).__name__} requires gradients\n"
            "  fix: frozen='in', which keeps frozen parameters registered; or thaw something"
        )
    result = ParamGroups(groups.values())
    result.depths = depths
    result.made = tuple({**group, "params": list(group["params"])} for group in result)
    return result


def _spared(root: nn.Module, no_decay: Selector | Sequence[Selector] | None) -> set[int]:
    """What does not decay, by identity: a tied tensor is spared under any of its names."""
    if no_decay is not None:
        several = tuple(no_decay) if isinstance(no_decay, (list, tuple)) else (cast("Selector", no_decay),)
        return set(map(id, select(root, *several).parameters.values())) if several else set()
    ask: Any = getattr(root, "no_weight_decay", None)
    told: set[str] = set(cast("Callable[[], Any]", ask)() or ()) if callable(ask) else set()
    patterns = [one for one in told if set(one) & set("*?[")]
    return {
        id(parameter)
        for path, module in root.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
        and (
            (not nn.parameter.is_lazy(parameter) and parameter.ndim <= 1)
            or role_of(module, name, kind="parameter") in _PLAIN_ROLES
            # As timm reads it: a whole name or a pattern for it; or a part.
            or (told and told & {names.join(path, name), path, *strict_ancestors([path])})
            or any(names.matches(names.join(path, name), pattern) for pattern in patterns)
        )
    }


def _check_rates(
    *, lr: float, head_lr: float | None, weight_decay: float, layer_decay: float | None, frozen: str
) -> None:
    for name, value in (("lr", lr), ("head_lr", head_lr), ("weight_decay", weight_decay)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ModelError(
                f"param_groups({name}={value}): expected a finite number, zero or more\n  fix: {name}=1e-3"
            )
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ModelError(f"param_groups(layer_decay={layer_decay}): expected 0 < factor <= 1\n  fix: layer_decay=0.75")
    if frozen not in {"in", "out"}:
        raise ModelError(f"param_groups(frozen={frozen!r}): expected 'in' or 'out'\n  fix: {name_some(['in', 'out'])}")


def _elements(group: dict[str, Any]) -> int:
    return sum(0 if nn.parameter.is_lazy(parameter) else parameter.numel() for parameter in group["params"])


def title_of(group: dict[str, Any], index: int) -> str:
    """What a group is called in messages."""
    return printable(str(group.get("name") or f"group {index}"))
