"""Callables that live in the ``__dict__`` of one module and act on it.

An instance attribute wins over the method of the class, whoever calls it, and leaves the module's type, its
``state_dict`` keys and its forward graph as they are.
"""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

import torch.fx
from torch import nn

from frostline.errors import HoldReleased

M = TypeVar("M", bound=nn.Module)


class InstanceMethod(Generic[M]):
    """The base of what replaces ``train`` or ``forward`` on one module.

    Two properties matter and are tested. The reference to the module is weak, so that a deleted model frees its memory
    at once. And a copy acts on the copy: ``deepcopy`` and ``pickle`` rebind it to the module that is being built.
    """

    def __init__(self, module: M) -> None:
        self._module: weakref.ref[M] = weakref.ref(module)

    @property
    def module(self) -> M:
        """The module it acts on.

        Raises:
            HoldReleased: the module no longer exists.
        """
        module = self._module()
        if module is None:
            raise HoldReleased(f"{type(self).__name__}: the module that it belonged to no longer exists")
        return module

    def guards(self, module: nn.Module) -> bool:
        """Whether this is the module it acts on."""
        return self._module() is module

    def _settings(self) -> tuple[Any, ...]:
        """What the constructor takes behind the module."""
        return ()

    def __deepcopy__(self, memo: dict[int, Any]) -> InstanceMethod[M]:
        # deepcopy registers the new module in the memo before it copies the old one's __dict__, where we live.
        module = self.module
        return type(self)(memo.get(id(module), module), *self._settings())

    def __reduce__(self) -> tuple[Any, ...]:
        # A GraphModule hands over its __dict__ as an argument, before it is memoized: it would not end. As it rebuilds
        # itself from its code and takes over no attribute that it has already, its copy goes without.
        if isinstance(self.module, torch.fx.GraphModule):
            return _nothing, ()
        # pickle, too, has memoized the module by the time that it reaches its __dict__.
        return type(self), (self.module, *self._settings())


def _nothing() -> None:
    """What a pickled GraphModule carries in place of a method."""


def install(module: nn.Module, name: str, method: InstanceMethod[Any]) -> object | None:
    """Put a method into the module's own ``__dict__``.

    Returns:
        What lay there before, if anything did; for :func:`uninstall`.
    """
    before = module.__dict__.get(name)
    module.__dict__[name] = method
    return before


def uninstall(module: nn.Module, name: str, kind: type[InstanceMethod[Any]], before: object | None) -> None:
    """Take it out again and put back what was there; what someone else has put in its place since is left alone."""
    if isinstance(module.__dict__.get(name), kind):
        if before is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = before
