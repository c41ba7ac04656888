"""What `freeze` would do, as a value: what it would lock and stop training, and why it would refuse.

Planning reads the model and changes nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from torch import nn

from frostline.errors import CannotFreeze, TiedAcrossBoundary, name_some
from frostline.findings import Finding, Safety, Severity
from frostline.freezing.handlers import Handler, handlers_for, is_lazy, keeps_own_mode
from frostline.norms.layers import has_running_statistics, statistics_of
from frostline.state import names
from frostline.state.inventory import Inventory, entries_at, inventory, owners
from frostline.state.roles import role_of
from frostline.state.selection import Selection, Selector, select, strict_ancestors
from frostline.state.snapshot import entries_of
from frostline.tables import html_text

Level: TypeAlias = Literal["grad", "stats", "state"]
Lock: TypeAlias = Literal["soft", "hard"]


@dataclass(frozen=True)
class FreezePlan:
    """What a freeze would do on one model.

    Attributes:
        root: the model, without wrappers.
        level: ``grad``, ``stats`` or ``state``.
        locked: path to module, for every module that would be kept in eval mode.
        parameters: path to parameter, for every parameter that would stop training.
        handled: path to module and the handlers that it needs.
        paths: every state entry that would be held.
        tops: the selected modules that have no selected module above them.
        findings: what the user should know: tensors that cross the boundary, parameters left beside it.
    """

    root: nn.Module
    level: Level
    locked: dict[str, nn.Module]
    parameters: dict[str, nn.Parameter]
    handled: dict[str, tuple[nn.Module, tuple[Handler, ...]]]
    paths: tuple[str, ...]
    tops: dict[str, nn.Module]
    findings: tuple[Finding, ...]

    @property
    def gripped(self) -> list[str]:
        """The paths of the modules that would be locked or handled."""
        return list({**self.locked, **self.handled})

    def held_entries(self) -> Inventory:
        """The live entries that would be held."""
        return entries_at(self.root, set(self.paths))

    def __str__(self) -> str:
        count = f"{len(self.paths)} state entries, {len(self.parameters)} parameters"
        kept = f"{len(self.locked)} modules kept in eval mode"
        parts = [f"freeze {type(self.root).__name__}, level {self.level!r}: {count}, {kept}"]
        parts += [f"  {folded}" for folded in names.fold(list(self.tops or self.parameters))]
        parts += [
            f"  {path}: {', '.join(type(h).__name__ for h in handlers)}" for path, (_, handlers) in self.handled.items()
        ]
        parts += [str(finding) for finding in self.findings]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        return html_text(self)


def plan_freeze(
    model: nn.Module,
    *selectors: Selector,
    level: Level = "state",
    handlers: Mapping[type[nn.Module], Handler] | None = None,
) -> FreezePlan:
    """Work out what :func:`~frostline.freezing.freeze` would do, and refuse what cannot be held. Changes nothing.

    Args:
        model: any module.
        *selectors: the part, as in :func:`~frostline.state.selection.select`.
        level: ``"state"`` for parameters, buffers and mode; ``"grad"`` for parameters only; ``"stats"`` for the running
            statistics of normalization layers, whose weight and bias go on training.
        handlers: what module types need beyond eval mode, for types that the library does not know.

    Returns:
        The :class:`FreezePlan`; printing it says what would happen.

    Raises:
        NothingSelected: a selector matches nothing.
        CannotFreeze: a lazy module, a batch norm without running statistics, a single statistics buffer, or nothing
            that the level could hold.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> print(plan_freeze(model, "1"))
        freeze Sequential, level 'state': 12 state entries, 2 parameters, 1 modules kept in eval mode
          1
    """
    if level not in get_args(Level):
        raise CannotFreeze(f"freeze(level={level!r}): no such level.\n  fix: one of {', '.join(get_args(Level))}")
    selection = select(model, *selectors)
    _refuse_lazy(selection)
    if level == "state":
        _refuse_batch_dependent(selection)
    plan = plan_selection(selection, level, handlers or {})
    if not plan.paths:
        what = "running statistics" if level == "stats" else "parameters"
        raise CannotFreeze(
            f"freeze(level={level!r}): the {len(selection.modules)} selected modules have no {what} to hold.\n"
            '  fix: another selector, or level="state"'
        )
    return plan


def plan_selection(selection: Selection, level: Level, handlers: Mapping[type[nn.Module], Handler]) -> FreezePlan:
    """The plan for a selection that was examined before; it may be empty.

    Raises:
        CannotFreeze: a single buffer is left of a module that writes it by its mode.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> plan_selection(select(model, "1"), "stats", {}).paths
        ('1.running_mean', '1.running_var', '1.num_batches_tracked', '1.training')
    """
    if level == "state":
        _refuse_single_buffers(selection)
    locked = {} if level == "grad" else selection.modules
    if level == "stats":
        locked = {p: m for p, m in locked.items() if has_running_statistics(m)}
    needs = {p: (m, tuple(handlers_for(m, handlers))) for p, m in locked.items()}
    return FreezePlan(
        root=selection.root,
        level=level,
        locked={p: m for p, m in locked.items() if not keeps_own_mode(m)},
        parameters={} if level == "stats" else selection.parameters,
        handled={p: (m, found) for p, (m, found) in needs.items() if found},
        paths=_held_paths(selection, level, locked),
        tops=selection.tops,
        findings=(*_tied(selection, level), *_left_beside(selection, level)),
    )


def _held_paths(selection: Selection, level: Level, locked: dict[str, nn.Module]) -> tuple[str, ...]:
    entries = entries_of(selection, inventory(selection.root))
    if level == "grad":
        return tuple(entries.of("parameter", "requires_grad"))
    if level == "stats":
        statistics = {"norm.mean", "norm.var", "norm.count", "mode"}
        return tuple(p for p, e in entries.items() if e.module in locked and e.role in statistics)
    # A recurrent layer follows the mode it is asked for; with dropout 0 nothing in it depends on the mode.
    free = {p for p, m in selection.modules.items() if keeps_own_mode(m)}
    return tuple(p for p, e in entries.items() if not (e.kind == "mode" and e.module in free))


def _refuse_lazy(selection: Selection) -> None:
    modules = dict(selection.root.named_modules(remove_duplicate=False))
    lazy = [p for p in [*selection.modules, *map(names.parent, selection.alone)] if is_lazy(modules[p])]
    if lazy:
        raise CannotFreeze(
            f"freeze: lazy modules have no parameters yet and change their class when they get them.\n"
            f"  where: {name_some(lazy)}\n"
            "  fix: run one forward pass on real input first, then freeze"
        )


def _refuse_batch_dependent(selection: Selection) -> None:
    unfit = [
        p for p, m in selection.modules.items() if (u := statistics_of(m)) and _depends_on_batch_in_eval(m, u.uses)
    ]
    if unfit:
        raise CannotFreeze(
            "freeze: a batch norm without running statistics normalizes with the batch in eval mode too, so its output "
            "for one sample depends on the others and cannot be held (N302).\n"
            f"  where: {name_some(unfit)}\n"
            "  fix: build it with track_running_stats=True and estimate its statistics, or hold its parameters only "
            'with level="grad"'
        )


def _depends_on_batch_in_eval(module: nn.Module, uses: str) -> bool:
    return (
        isinstance(module, nn.modules.batchnorm._BatchNorm) and not has_running_statistics(module) and uses == "batch"
    )


def _refuse_single_buffers(selection: Selection) -> None:
    modules = dict(selection.root.named_modules(remove_duplicate=False))

    def written(path: str) -> bool:
        role = role_of(modules[names.parent(path)], path.rpartition(".")[2], kind="buffer")
        return role in {"norm.mean", "norm.var", "norm.count"} or role.startswith(("spectral.", "quant."))

    single = [p for p in selection.alone if p in selection.buffers and written(p)]
    if single:
        layer = names.parent(single[0])
        lets_train = f', or freeze(model, {layer!r}, level="stats") to let weight and bias train'
        raise CannotFreeze(
            f"freeze: a single buffer of a {type(modules[layer]).__name__} cannot be held by itself, its layer decides "
            "over all of them by its mode.\n"
            f"  where: {name_some(single)}\n"
            f"  fix: freeze(model, {layer!r}){lets_train if has_running_statistics(modules[layer]) else ''}"
        )


def _tied(selection: Selection, level: Level) -> list[Finding]:
    """Held parameters and modules that the model also knows under a name that is not held."""
    if level == "stats":
        return []
    everywhere = owners(selection.root)
    findings: list[Finding] = []
    reported: set[int] = set()
    for path, parameter in selection.parameters.items():
        outside = [p for p, _, _ in everywhere[id(parameter)] if p not in selection.parameters]
        if outside and id(parameter) not in reported:
            reported.add(id(parameter))
            findings.append(_crossing("parameter", path, outside))
    if level == "state":
        by_object: dict[int, list[str]] = {}
        for path, module in selection.root.named_modules(remove_duplicate=False):
            by_object.setdefault(id(module), []).append(path)
        for path, module in selection.modules.items():
            outside = [p for p in by_object[id(module)] if p not in selection.modules]
            if outside and next(module.parameters(), None) is None and id(module) not in reported:
                reported.add(id(module))
                findings.append(_crossing("module", path, outside))
    return findings


def _crossing(kind: str, path: str, outside: list[str]) -> Finding:
    return Finding(
        code="F113",
        severity=Severity.WARNING,
        message=f"{kind} {path!r} is held, and with it {name_some([repr(p) for p in outside])}, the same {kind}",
        where=path,
        evidence="one object under several names",
        remedy=f"select {outside[0]!r} too if that is meant, or untie the two (a copy of the {kind}) before freezing",
        safety=Safety.MANUAL,
        paths=(path, *outside),
    )


def _left_beside(selection: Selection, level: Level) -> list[Finding]:
    """Trainable parameters that a partly held module owns directly: a ViT's ``cls_token`` beside its held blocks."""
    if level == "stats" or not selection.modules:
        return []
    modules = dict(selection.root.named_modules(remove_duplicate=False))
    left = [
        names.join(path, name)
        for path in sorted(strict_ancestors(selection.tops), key=names.natural_key)
        for name, parameter in modules[path]._parameters.items()
        if parameter is not None and parameter.requires_grad and names.join(path, name) not in selection.parameters
    ]
    if not left:
        return []
    return [
        Finding(
            code="F121",
            severity=Severity.INFO,
            message=f"{len(left)} parameters beside the held part stay trainable: {name_some(left)}",
            where=left[0],
            evidence="they belong directly to a module of which only a part is held",
            remedy=f"add {', '.join(repr(p) for p in left[:8])} to the selectors if they should be held",
            safety=Safety.MANUAL,
            paths=tuple(left),
        )
    ]


def warn_of_ties(findings: Iterable[Finding]) -> None:
    """Warn the caller's caller of tensors that are held, or released, under one of several names only."""
    for finding in findings:
        if finding.code == "F113":
            warnings.warn(f"{finding}", TiedAcrossBoundary, stacklevel=3)
