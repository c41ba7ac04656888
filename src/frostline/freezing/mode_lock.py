"""Keeps a module in eval mode, whoever calls ``train()``.

The soft lock is a guard object in the ``__dict__["train"]`` of the module. It survives deepcopy, pickle, FX, compile
before and after, FSDP2 and fusing, and costs nothing in the forward pass. It does not stop a direct
``module.training = True``. The hard lock does: it swaps the class for a subclass whose ``training`` is a constant.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar, cast

from torch import nn

from frostline.attach.instance_method import InstanceMethod, install, uninstall

M = TypeVar("M", bound=nn.Module)


class ModeGuard(InstanceMethod[nn.Module]):
    """Stands in for ``module.train``: the module stays in eval, its children are asked as usual."""

    def __call__(self, mode: bool = True) -> nn.Module:
        """What ``nn.Module.train`` does, except that this module goes to eval; each child decides for itself."""
        if not isinstance(mode, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - torch checks it likewise
            raise ValueError("training mode is expected to be boolean")  # noqa: TRY004 - the type torch raises
        module = self.module
        # A shallow copy shares this object and cannot be told apart from here: once the module has been released, the
        # copy that still has the guard must not drive it.
        if module.__dict__.get("train") is self:
            module.training = False
        for child in module.children():
            child.train(mode)
        return module


class HardLocked:
    """Mixed in before the class of a hard-locked module: its mode is eval, and writing it does nothing."""

    @property
    def training(self) -> bool:
        """Always False."""
        return False

    @training.setter
    def training(self, mode: bool) -> None:
        pass

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The swapped class cannot be imported; the original can, and is swapped again after loading.
        own = getattr(self, "__getstate__", None)  # every object has one from Python 3.11 on
        state = cast("nn.Module", self).__dict__ if own is None else own()
        return _rebuild_hard_locked, (type(self).__mro__[2],), dict(state) if isinstance(state, dict) else state


def lock(module: nn.Module, *, hard: bool) -> tuple[bool, object | None]:
    """Put a module into eval mode and keep it there; its children are left alone.

    Returns:
        The mode and the instance attribute ``train`` from before, for :func:`unlock`.
    """
    before = module.training
    # Written directly: the module's own `train` could do more than set a flag (merge an adapter, say).
    module.training = False
    displaced = install(module, "train", ModeGuard(module))
    if hard:
        harden(module)
    return before, displaced


def unlock(module: nn.Module, before: tuple[bool, object | None]) -> None:
    """Undo :func:`lock`: the class, the instance attribute and the mode are what they were."""
    soften(module)
    uninstall(module, "train", ModeGuard, before[1])
    module.training = before[0]


def is_locked(module: nn.Module) -> bool:
    """Whether a guard is in place.

    Example:
        >>> layer = nn.Dropout()
        >>> before = lock(layer, hard=False)
        >>> layer.train().training, is_locked(layer)
        (False, True)
        >>> unlock(layer, before)
        >>> layer.training, is_locked(layer)
        (True, False)
    """
    guard = module.__dict__.get("train")
    # A guard that came along with a shallow copy belongs to another module, and keeps nothing here.
    return isinstance(guard, ModeGuard) and guard.guards(module)


def harden(module: nn.Module) -> None:
    """Swap the class of a module for one whose ``training`` is constantly False; a second time does nothing."""
    if not isinstance(module, HardLocked):
        cast("Any", module).__class__ = _hard_locked_class(type(module))


def soften(module: nn.Module) -> None:
    """Undo :func:`harden`, if it was done."""
    cls = type(module)
    if not isinstance(module, HardLocked):
        return
    if cls.__mro__[1] is HardLocked:
        module.__class__ = cls.__mro__[2]
        return
    # Someone (FSDP2) has put a class of its own on top since: the same class is made again, without ours below it.
    ours = next(c for c in cls.__mro__ if HardLocked in c.__bases__)
    bases = tuple(ours.__mro__[2] if base is ours else base for base in cls.__bases__)
    body = {name: value for name, value in cls.__dict__.items() if name not in {"__dict__", "__weakref__"}}
    cast("Any", module).__class__ = type(cls.__name__, bases, body)


@functools.cache
def _hard_locked_class(cls: type[M]) -> type[M]:
    # `__module__` is kept because FX tells its leaves by it; the name, because reports print it.
    body = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return cast("type[M]", type(cls.__name__, (HardLocked, cls), body))


def _rebuild_hard_locked(cls: type[nn.Module]) -> nn.Module:
    return cast("nn.Module", object.__new__(_hard_locked_class(cls)))
