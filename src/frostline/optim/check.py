"""Does an optimizer hold what the model has? Parameters that are missing, gone, doubled or frozen, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.attach.inner_optimizer import inner_optimizer
from frostline.errors import ModelError, UnsupportedModel, name_some
from frostline.optim.groups import ParamGroups, title_of
from frostline.state import names
from frostline.state.expected import expect_model
from frostline.tables import html_table, text_table

SCHEMA_VERSION = 1
# What makes training wrong, and what may be meant.
_WRONG = ("missing", "orphaned", "duplicate", "differs", "late")


@dataclass(frozen=True)
class GroupRow:
    """One thing about one parameter or group.

    Attributes:
        path: of the parameter in the model; what is known of it otherwise.
        what: ``missing`` (trains, and no group has it), ``orphaned`` (in a group, and not in the model), ``duplicate``,
            ``frozen`` (in a group, and does not train), ``differs`` (a setting is not what was asked), ``late`` (a
            group that the scheduler does not scale, because it was made before).
        group: what the group is called.
        why: more about it.
    """

    path: str
    what: str
    group: str
    why: str


@dataclass(frozen=True)
class GroupCheck:
    """What an optimizer holds of a model.

    Attributes:
        rows: what was found, in the order of the model.
        parameters: how many of the model are in exactly one group.
    """

    rows: tuple[GroupRow, ...]
    parameters: int

    @property
    def right(self) -> bool:
        """Whether nothing is missing, gone, doubled or set otherwise; what is frozen may be in a group."""
        return not any(row.what in _WRONG for row in self.rows)

    def of(self, what: str) -> list[str]:
        """The paths of which this was found."""
        return [row.path for row in self.rows if row.what == what]

    def raise_if_wrong(self) -> None:
        """Do nothing if it is right.

        Raises:
            ModelError: it is not; each kind is named.
        """
        if self.right:
            return
        lines = [
            f"  {what}: {len(self.of(what))}: {name_some(list(dict.fromkeys(self.of(what))))}"
            for what in _WRONG
            if self.of(what)
        ]
        fix = "make the optimizer after the model is as it should be, from fl.param_groups(model, ...)"
        raise ModelError("\n".join(["the optimizer does not hold what the model trains", *lines, f"  fix: {fix}"]))

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values with a schema version."""
        rows = [asdict(row) for row in self.rows]
        return {"schema_version": SCHEMA_VERSION, "right": self.right, "parameters": self.parameters, "rows": rows}

    def __repr__(self) -> str:
        return str(self).partition("\n")[0]

    def __str__(self) -> str:
        said = f"{self.parameters} parameters are in exactly one group"
        if not self.rows:
            return f"{said}; nothing is missing, gone or doubled"
        return f"{said}\n{text_table(_COLUMNS, self._rows(), width=100)}"

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows())

    def _rows(self) -> list[list[object]]:
        return [[row.path, row.what, row.group, row.why] for row in self.rows]


_COLUMNS = ["parameter", "", "group", "why"]


def check_groups(
    model: nn.Module,
    optimizer: Optimizer,
    asked: Sequence[Mapping[str, Any]] | None = None,
    *,
    scheduler: Any = None,
) -> GroupCheck:
    """Compare what an optimizer holds with what a model has. Nothing is changed.

    Args:
        model: any module; wrappers are looked through.
        optimizer: anything with ``param_groups``; wrappers such as accelerate's too.
        asked: the groups that it was made from, to compare their settings: what :func:`param_groups` gave, or copies of
            dictionaries. Rates are compared with ``initial_lr`` where there is one: the present rate is what schedulers
            change, so one that was changed by hand is not seen there.
        scheduler: a scheduler of torch, to see whether it scales every group of this optimizer.

    Returns:
        The :class:`GroupCheck`.

    Raises:
        UnsupportedModel: the one is no module, or the other has no groups.
        ModelError: ``asked`` are the optimizer's own dictionaries, which would be compared with themselves.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
        >>> model[0] = nn.Linear(2, 2)  # after the optimizer was made
        >>> found = check_groups(model, optimizer)
        >>> found.of("missing"), found.of("orphaned")[0]
        (['0.weight', '0.bias', '1.weight', '1.bias'], 'group 0, number 0, shape (2, 2)')
    """
    usage = "check_groups(model, optimizer)"
    expect_model(model, "check_groups", usage)
    if not hasattr(optimizer, "param_groups"):
        kind = type(optimizer).__name__
        raise UnsupportedModel(f"check_groups: expected something with param_groups, found a {kind}\n  fix: {usage}")
    root = names.unwrap(model)
    known: dict[int, str] = {}
    for path, parameter in root.named_parameters(remove_duplicate=False):
        known.setdefault(id(parameter), path)
    groups: list[dict[str, Any]] = list(optimizer.param_groups)
    places: dict[int, list[str]] = {}
    rows: list[GroupRow] = []
    for index, group in enumerate(groups):
        told: Sequence[str] = group.get("param_names") or ()
        for number, parameter in enumerate(group["params"]):
            places.setdefault(id(parameter), []).append(title_of(group, index))
            if id(parameter) not in known:
                rows.append(_orphan(parameter, index, number, told, root, title_of(group, index)))
    parameters = dict(root.named_parameters())
    for path, parameter in parameters.items():
        inside = places.get(id(parameter), [])
        if not inside and parameter.requires_grad:
            rows.append(GroupRow(path, "missing", "", "it requires gradients, and no group has it"))
        if len(inside) > 1:
            rows.append(GroupRow(path, "duplicate", ", ".join(dict.fromkeys(inside)), f"{len(inside)} times"))
        if inside and not parameter.requires_grad:
            rows.append(GroupRow(path, "frozen", inside[0], "it does not require gradients"))
    rows += _differing(groups, asked.made if isinstance(asked, ParamGroups) else asked or ())
    rows += _late(groups, optimizer, scheduler)
    once = sum(len(places.get(id(parameter), ())) == 1 for parameter in parameters.values())
    return GroupCheck(tuple(rows), once)


def _orphan(parameter: Tensor, index: int, number: int, told: Sequence[str], root: nn.Module, title: str) -> GroupRow:
    """A parameter of a group that the model does not have; by its name, where the optimizer knows it."""
    shape = tuple(parameter.shape)
    name = told[number] if number < len(told) else ""
    if name:
        live = dict(root.named_parameters(remove_duplicate=False)).get(name)
        why = "the model has another tensor of this name: it was re-created" if live is not None else "gone"
        return GroupRow(name, "orphaned", title, why)
    return GroupRow(f"group {index}, number {number}, shape {shape}", "orphaned", title, "not in the model")


def _differing(groups: Sequence[Mapping[str, Any]], asked: Sequence[Mapping[str, Any]]) -> list[GroupRow]:
    by_member = {id(parameter): group for group in asked for parameter in group["params"]}
    rows: list[GroupRow] = []
    for index, group in enumerate(groups):
        wanted = next((by_member[id(p)] for p in group["params"] if id(p) in by_member), None)
        if wanted is None:
            continue
        if wanted is group:
            raise ModelError(
                "check_groups(asked=...): these are the optimizer's own dictionaries, which it keeps and changes\n"
                "  fix: asked=[dict(group) for group in groups], copied before the optimizer is made"
            )
        for key in wanted.keys() - {"params", "param_names", "name", "layer", "initial_lr"}:
            now = group.get("initial_lr", group["lr"]) if key == "lr" else group.get(key)
            if now != wanted[key]:
                why = f"{key} is {now}, asked was {wanted[key]}"
                rows.append(GroupRow(title_of(dict(group), index), "differs", title_of(dict(group), index), why))
    return rows


def _late(groups: Sequence[dict[str, Any]], optimizer: Any, scheduler: Any) -> list[GroupRow]:
    """Groups that a scheduler does not scale: those added after it was made; all, if it has another optimizer."""
    if scheduler is None:
        return []
    parts: Any = getattr(scheduler, "_schedulers", None) or [scheduler]  # of a sequence or a chain
    rows: list[GroupRow] = []
    for part in parts:
        own: Any = getattr(part, "optimizer", None)
        if own is not None and inner_optimizer(own) is not inner_optimizer(optimizer):
            return [GroupRow("(scheduler)", "late", "", "it scales another optimizer")]
        base: Any = getattr(part, "base_lrs", groups)
        for index in range(len(base), len(groups)):
            title = title_of(groups[index], index)
            row = GroupRow(title, "late", title, "the scheduler was made before this group, and does not scale it")
            rows += [row] if row not in rows else []
    return rows
