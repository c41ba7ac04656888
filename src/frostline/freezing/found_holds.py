"""Holds that are found in a model: on a copy, after loading, or to be compared with those of other processes."""

from __future__ import annotations

from typing import cast

from torch import nn

from frostline.attach.ledger import ledger_of
from frostline.freezing.grips import tokens_on
from frostline.freezing.hold import Hold
from frostline.freezing.plan import FreezePlan, Level, plan_selection
from frostline.state import names
from frostline.state.selection import Selection, Selector, exactly


def holds_on(model: nn.Module) -> list[Hold]:
    """The holds that are on a model, found in the model itself.

    A deepcopy or an unpickled copy of a held model is held like the original, and the original's :class:`Hold` does not
    act on it; this makes holds that do. Their reference is the state as it is now.

    Args:
        model: any module.

    Returns:
        One hold for each :func:`freeze` that is still in force, in the order of the model.

    Example:
        >>> from copy import deepcopy
        >>> from frostline import freeze
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> _ = freeze(model, "1")
        >>> copy = deepcopy(model)
        >>> holds_on(copy)[0].thaw()
        >>> copy.train()[1].training, model.train()[1].training
        (True, False)
    """
    root = names.unwrap(model)
    return [_found(root, token, cast("Level", level)) for token, level in tokens_on(root).items()]


def levels_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Every state entry that is held, with the levels of the holds on it; only reads, and digests nothing.

    Example:
        >>> from frostline import freeze
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
        >>> hold = freeze(model, "1")
        >>> levels_of(model)
        {'1.training': ('state',), '1.p': ('state',)}
    """
    root = names.unwrap(model)
    found: dict[str, set[str]] = {}
    for token, level in tokens_on(root).items():
        for path in _plan_of(root, token, cast("Level", level))[0].paths:
            found.setdefault(path, set()).add(level)
    return {path: tuple(sorted(levels)) for path, levels in found.items()}


def _found(root: nn.Module, token: str, level: Level) -> Hold:
    plan, selectors = _plan_of(root, token, level)
    hold = Hold(plan, selectors, {}, token=token)
    hold._keep_plan(plan)
    return hold


def _plan_of(root: nn.Module, token: str, level: Level) -> tuple[FreezePlan, tuple[Selector, ...]]:
    """What a hold has, as a plan, and the selectors that name it."""
    modules: dict[str, nn.Module] = {}
    parameters: dict[str, nn.Parameter] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        ledger = ledger_of(module)
        if ledger is None:
            continue
        for name, held in ledger.gradients.items():
            parameter = module._parameters.get(name)
            if token in held.tokens and parameter is not None:
                parameters[names.join(path, name)] = parameter
        if any(token in held.tokens for held in ledger.of_module):
            modules[path] = module
    buffers = {p: b for p, b in root.named_buffers(remove_duplicate=False) if names.parent(p) in modules}
    alone = tuple(p for p in parameters if names.parent(p) not in modules)
    plan = plan_selection(Selection(root, modules, parameters, buffers, alone), level, {})
    return plan, tuple(exactly(path) for path in [*modules, *alone])
