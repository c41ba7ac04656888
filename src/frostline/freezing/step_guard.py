"""Keeps optimizers from moving what is held.

An optimizer skips a parameter whose ``grad`` is None. A gradient of zeros, or a stale one, does not stop momentum and
weight decay, and a hold may come between ``backward()`` and ``step()``; so the gradients of what is held are cleared
right before each step. That also holds where someone has set ``requires_grad`` to True again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import LBFGS, Optimizer

from frostline.attach.inner_optimizer import inner_optimizer
from frostline.attach.ledger import ledger_of
from frostline.errors import FreezeError

Place = tuple[nn.Module, str]


class StepGuard:
    """Hooks around the steps of some optimizers.

    It refers weakly to the modules, and finds each parameter by its owner and name, so that a parameter which was
    re-created (FSDP2, ``assign=True``) is still found. It minds only what the ledgers say is held, so that it is idle
    after a thaw by whatever means.
    """

    def __init__(self, places: Iterable[Place], optimizers: Iterable[Optimizer]) -> None:
        self._places = [(weakref.ref(module), name) for module, name in places]
        self._handles: list[Any] = []
        self._kept: list[tuple[nn.Parameter, Tensor]] = []
        self._guarded: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.guard(optimizers)

    def guard(self, optimizers: Iterable[Optimizer]) -> None:
        """Guard the steps of these too; one that is guarded already stays so."""
        for optimizer in optimizers:
            if optimizer in self._guarded:
                continue
            self._guarded.add(optimizer)
            self._handles.append(optimizer.register_step_pre_hook(self))
            if isinstance(optimizer, LBFGS):
                self._handles.append(optimizer.register_step_post_hook(self._after))

    # A compiled step runs hooks too. They are bookkeeping, which changes from step to step: traced, it would be traced
    # again and again. Unlike torch.compiler.disable this decorator does not import the compiler, nor does it cost a
    # graph break: torch breaks the graph before it calls hooks.
    @_disable_dynamo
    def __call__(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Clear the gradients of what is held; called by torch before each step."""
        self._clear()
        # LBFGS skips nothing: it moves all its parameters as one vector, along directions that it remembers.
        self._kept = []
        if isinstance(optimizer, LBFGS):
            own = {id(p) for group in optimizer.param_groups for p in group["params"]}
            self._kept = [(p, p.detach().clone()) for p in self._held() if id(p) in own]
        # A closure makes gradients within the step: args are (optimizer, closure).
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            return None

        def guarded() -> Any:
            self._put_back()
            loss = closure()
            self._clear()
            return loss

        if len(args) > 1:
            return (args[0], guarded, *args[2:]), kwargs
        return args, {**kwargs, "closure": guarded}

    def watch(self, places: Iterable[Place]) -> None:
        """Watch these places instead; with none left, the hooks are removed."""
        self._places = [(weakref.ref(module), name) for module, name in places]
        if not self._places:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def _held(self) -> Iterator[nn.Parameter]:
        for reference, name in self._places:
            module = reference()
            ledger = None if module is None else ledger_of(module)
            parameter = None if module is None else module._parameters.get(name)
            if parameter is not None and ledger is not None and name in ledger.gradients:
                yield parameter

    def _clear(self) -> None:
        for parameter in self._held():
            if parameter.grad is not None:
                parameter.grad = None

    @_disable_dynamo
    def _after(self, *_: Any) -> None:
        self._put_back()
        self._kept = []

    def _put_back(self) -> None:
        with torch.no_grad():
            for parameter, value in self._kept:
                parameter.copy_(value)


def as_optimizers(optimizer: Optimizer | Iterable[Optimizer] | None) -> list[Optimizer]:
    """The torch optimizers that were meant: one, several or none; wrappers such as accelerate's are looked through.

    Raises:
        FreezeError: something else was passed.

    Example:
        >>> as_optimizers(None)
        []
    """
    if optimizer is None:
        return []
    several: list[Any] = [optimizer]
    if isinstance(optimizer, Iterable) and not isinstance(optimizer, (str, Mapping, Optimizer)):
        several = list(optimizer)
    found: list[Optimizer] = []
    for each in several:
        inner = inner_optimizer(each)
        if not isinstance(inner, Optimizer):
            raise FreezeError(
                f"freeze(optimizer=...): expected a torch.optim.Optimizer, got {type(each).__name__}.\n"
                "  fix: pass the torch optimizer itself, or a list of them"
            )
        found.append(inner)
    return found
