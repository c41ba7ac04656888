"""Freezing that lasts, can be verified to the bit, and is undone exactly: `freeze` and `frozen`."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from torch import nn
from torch.fx import GraphModule
from torch.optim import Optimizer

from frostline.errors import CannotFreeze, name_some
from frostline.freezing.handlers import Handler
from frostline.freezing.hold import Hold
from frostline.freezing.live_wrappers import refuse_freeze
from frostline.freezing.plan import FreezePlan, Level, Lock, plan_freeze, warn_of_ties
from frostline.freezing.step_guard import as_optimizers
from frostline.state.expected import expect_model
from frostline.state.selection import Selector, exactly, select
from frostline.state.shards import reshard


def freeze(
    model: nn.Module,
    *selectors: Selector,
    level: Level = "state",
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    lock: Lock = "soft",
    probe: Any = None,
    handlers: Mapping[type[nn.Module], Handler] | None = None,
) -> Hold:
    """Freeze part of a model so that it stays frozen, to the bit, whatever the training loop does.

    At level ``"state"`` the selected modules are kept in eval mode (``model.train()`` no longer reaches them), their
    parameters get ``requires_grad=False`` and ``grad=None``, state that eval mode does not protect is protected by type
    (fake quantizers, observers, embeddings with ``max_norm``, recurrent dropout), and the reference for
    :meth:`Hold.verify` is digested. The rest of the model is not touched; types, ``state_dict`` keys, parameter objects
    and optimizer groups stay as they are. Either all of it happens, or, on an error, nothing.

    Args:
        model: any module; ``torch.compile`` and data-parallel wrappers are looked through.
        *selectors: the part: globs on dotted paths, compiled regular expressions, modules, parameters, module types or
            predicates; see :func:`~frostline.state.selection.select`.
        level: ``"state"``; ``"grad"`` for parameters only; ``"stats"`` for running statistics only, so that weight and
            bias of the norm layers go on training.
        optimizer: the optimizers that own the parameters. Before each step they drop gradients of what is held, so that
            neither momentum nor weight decay nor a stale gradient moves it. Needed when freezing between ``backward()``
            and ``step()``, or where other code sets ``requires_grad`` or fills in gradients of zeros.
        lock: ``"hard"`` also withstands a direct ``module.training = True``, by swapping classes.
        probe: example inputs (a tensor, a tuple of arguments, or a mapping of keyword arguments). The model is run
            twice in simulated train mode, everything is put back, and held state that moved without a handler is an
            error.
        handlers: module type to :class:`~frostline.freezing.handlers.Handler`, for types that write state in forward
            whatever their mode: ``{MyCodebook: KeepTensors()}``.

    Returns:
        The :class:`Hold`. It need not be kept: the part stays frozen without it.

    Raises:
        NothingSelected: a selector matches nothing; the nearest paths are named.
        UnsupportedModel: it is no module.
        CannotFreeze: a lazy module, a batch norm without running statistics, a ``GraphModule`` that should be locked
            hard, state that the probe saw moving, or, on several processes, parameters whose gradients a live
            DistributedDataParallel waits for; :func:`~frostline.freezing.rewrap` freezes and wraps anew.
        CannotDigest: a held tensor has no bytes (meta device).

    Warns:
        TiedAcrossBoundary: a held tensor is also used outside of what is held.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> hold = freeze(model, "0", "1")
        >>> _ = model.train()(torch.randn(8, 2))
        >>> hold.verify().still, model[1].training
        (17, False)
        >>> hold.thaw()
        >>> model[1].training
        True
    """
    expect_model(model, "freeze", "freeze(model, *names)")
    if isinstance(probe, (bool, str)):
        raise CannotFreeze(
            f"freeze(probe={probe!r}): expected example inputs, which the model is run with\n"
            "  fix: leave probe out, or probe=batch"
        )
    if lock not in get_args(Lock):
        raise CannotFreeze(f"freeze(lock={lock!r}): no such lock.\n  fix: one of {', '.join(get_args(Lock))}")
    optimizers = as_optimizers(optimizer)
    reshard(model)  # a flag that is set on a parameter which FSDP2 gathered for a pass goes away with it
    plan = plan_freeze(model, *selectors, level=level, handlers=handlers)
    if lock == "hard":
        _refuse_graph_modules(plan)
    refuse_freeze(plan)
    by_path = tuple(path for selector in selectors for path in _by_path(plan.root, selector))
    # Before anything is done: where warnings are errors, this one has to leave the model as it was.
    warn_of_ties(plan.findings)
    hold = Hold(plan, by_path, handlers or {})
    hold._begin(plan, hard=lock == "hard", optimizers=optimizers, probe=probe)
    return hold


def _refuse_graph_modules(plan: FreezePlan) -> None:
    found = [path or "the model" for path, module in plan.locked.items() if isinstance(module, GraphModule)]
    if found:
        raise CannotFreeze(
            'freeze(lock="hard"): a torch.fx.GraphModule keeps its code on its class, which a hard lock would swap.\n'
            f"  where: {name_some(found)}\n"
            '  fix: lock="soft", or freeze the module that it was traced from'
        )


@contextmanager
def frozen(
    model: nn.Module,
    *selectors: Selector,
    level: Level = "state",
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    lock: Lock = "soft",
    probe: Any = None,
    handlers: Mapping[type[nn.Module], Handler] | None = None,
) -> Generator[Hold, None, None]:
    """Freeze within a ``with`` block; verify and thaw at its end.

    What was there before comes back also when the block raises; then nothing is verified, so that its own error is the
    one that is seen. What the block itself has thawed is not verified either. Arguments as for :func:`freeze`.

    Raises:
        FrozenStateMoved: at the end, if something that was held moved.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with frozen(model, "1"):
        ...     print(model.train()[1].training)
        False
        >>> model[1].training
        True
    """
    hold = freeze(model, *selectors, level=level, optimizer=optimizer, lock=lock, probe=probe, handlers=handlers)
    try:
        yield hold
        if not hold.released:
            hold.verify()
    finally:
        hold.close()


def _by_path(root: nn.Module, selector: Selector) -> tuple[Selector, ...]:
    """The selector without a reference to the model, so that a hold does not keep it alive."""
    if isinstance(selector, (nn.Module, nn.Parameter)):
        selection = select(root, selector)
        return tuple(exactly(path) for path in [*selection.tops, *selection.alone])
    return (selector,)
