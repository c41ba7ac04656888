"""Finds the DistributedDataParallel objects around a model, and refuses what they would not notice.

Such a wrapper takes in the parameters that require a gradient when it is made. Of others it exchanges no gradients and
says nothing; of those that no longer get one it waits for ever. The model does not know of its wrapper, so the objects
that Python's garbage collector knows are looked through: only where there are several processes, and only when
something is thawed or frozen.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from frostline.errors import CannotFreeze, CannotThaw
from frostline.freezing.plan import FreezePlan
from frostline.norms.processes import world_size
from frostline.state import names

# In the `__dict__` of a wrapper that is about to be replaced by one which takes in what changes.
_ALLOWED = "_frostline_rewrapping"


def wrappers_of(model: nn.Module) -> list[DistributedDataParallel]:
    """The live wrappers that exchange gradients of any parameter of this model between several processes.

    Only reads. Without an initialized ``torch.distributed``, or with one process, there is none, and nothing is looked
    through.

    Args:
        model: any module; also one that is a part of what is wrapped, or has a part that is.

    Example:
        >>> wrappers_of(nn.Linear(1, 1))
        []
    """
    if not several_processes():
        return []
    own = {id(parameter) for parameter in names.unwrap(model).parameters()}
    # `isinstance` would ask lazy proxies for their class, which runs code of theirs.
    live: list[Any] = [item for item in gc.get_objects() if issubclass(type(item), DistributedDataParallel)]
    return [
        wrapper
        for wrapper in live
        # One that was replaced, or that could not be made, has no reducer.
        if "reducer" in vars(wrapper)
        and dist.get_world_size(wrapper.process_group) > 1
        and any(id(parameter) in own for parameter in wrapper.module.parameters())
    ]


def several_processes() -> bool:
    """Whether this is one of several processes of ``torch.distributed``.

    Example:
        >>> several_processes()
        False
    """
    return world_size() > 1


def exchanged_by(wrapper: DistributedDataParallel) -> dict[int, nn.Parameter]:
    """The parameters of which a wrapper exchanges gradients, by id.

    The wrapper keeps no list of them; its buckets do. Asking for those takes as much memory as their gradients, until
    this returns.
    """
    known = {id(parameter): parameter for parameter in minded_by(wrapper).values()}
    counted = wrapper._get_ddp_logging_data().get("num_parameter_tensors")
    if counted == len(known):
        return known
    try:
        buckets = wrapper.reducer._get_zeros_like_grad_buckets()  # type: ignore[attr-defined]
        taken = {id(p) for bucket in buckets for p in bucket.parameters()}
    except (RuntimeError, TypeError, AttributeError):
        # A bucket of sparse gradients has no tensor. Then those that require one now are the best guess.
        taken = {key for key, parameter in known.items() if parameter.requires_grad}
    return {key: parameter for key, parameter in known.items() if key in taken}


def minded_by(wrapper: DistributedDataParallel) -> dict[str, nn.Parameter]:
    """The parameters that a wrapper does not ignore, by path in the module inside."""
    ignored = wrapper.parameters_to_ignore
    return {path: p for path, p in wrapper.module.named_parameters() if path not in ignored}


def waits_for_all(wrapper: DistributedDataParallel) -> bool:
    """Whether a wrapper waits for the gradients of all parameters that it has taken in."""
    return bool(wrapper.static_graph or not wrapper.find_unused_parameters)


def allow(wrapper: DistributedDataParallel, allowed: bool) -> None:
    """Let parameters of a wrapper be thawed and frozen, because it is about to be replaced."""
    if allowed:
        vars(wrapper)[_ALLOWED] = True
    else:
        vars(wrapper).pop(_ALLOWED, None)


def not_exchanged(model: nn.Module, freed: Mapping[str, nn.Parameter]) -> list[str]:
    """Those of some parameters that begin to train of which a live wrapper would exchange no gradients.

    Args:
        model: the model.
        freed: path to parameter.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> not_exchanged(layer, dict(layer.named_parameters()))
        []
    """
    if not freed or not several_processes():
        return []
    found = _not_exchanged(model, freed)
    if found:
        # A wrapper that nobody has any more may lie around in a cycle.
        gc.collect()
        found = _not_exchanged(model, freed)
    return found


def _not_exchanged(model: nn.Module, freed: Mapping[str, nn.Parameter]) -> list[str]:
    missed: set[int] = set()
    for wrapper in wrappers_of(model):
        if _ALLOWED not in vars(wrapper):
            missed |= _minded_and_not_taken(wrapper)
    return [path for path, parameter in freed.items() if id(parameter) in missed]


def _minded_and_not_taken(wrapper: DistributedDataParallel) -> set[int]:
    """The parameters, by id, that a wrapper does not ignore and exchanges no gradients of."""
    return {id(parameter) for parameter in minded_by(wrapper).values()} - exchanged_by(wrapper).keys()


def refuse_thaw(model: nn.Module, freed: Mapping[str, nn.Parameter]) -> None:
    """Refuse to let parameters train of which a live wrapper would exchange no gradients.

    Raises:
        CannotThaw: there are such.
    """
    missed = not_exchanged(model, freed)
    if missed:
        raise CannotThaw(
            "thaw: DistributedDataParallel took in the parameters that required a gradient when it was made. Of others "
            "it exchanges none and says nothing, so each process would train its own.\n"
            f"  where: {_named(missed)}\n"
            "  fix: ddp = frostline.freezing.rewrap(ddp, hold.thaw); with a schedule: rewrap(ddp, "
            "unfreezing.epoch_end)\n"
            "  when training is over: hold.close()"
        )


def end_training(model: nn.Module, freed: Mapping[str, nn.Parameter]) -> None:
    """Let live wrappers refuse to train where they would exchange no gradients of these parameters.

    They go on evaluating. A wrapper trains again when these parameters are frozen again; one that
    :func:`~frostline.freezing.rewrap` makes of it takes them in.

    Args:
        model: the model.
        freed: path to parameter that is about to require a gradient.
    """
    for wrapper in wrappers_of(model) if freed else []:
        if _ALLOWED in vars(wrapper):
            continue
        not_taken = _minded_and_not_taken(wrapper)
        missed = [parameter for parameter in freed.values() if id(parameter) in not_taken]
        if missed:
            wrapper.forward = _Ended(wrapper, missed)  # type: ignore[method-assign]


class _Ended:
    """The forward pass of a wrapper whose training is over."""

    def __init__(self, wrapper: DistributedDataParallel, missed: Sequence[nn.Parameter]) -> None:
        before = wrapper.forward
        earlier = isinstance(before, _Ended)
        self._forward: Any = before._forward if earlier else before
        self._known: list[nn.Parameter] = [*(before._known if earlier else []), *missed]
        self._wrapper = weakref.ref(wrapper)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        wrapper = self._wrapper()
        trains = wrapper is not None and wrapper.training and torch.is_grad_enabled()
        if trains and any(parameter.requires_grad for parameter in self._known):
            assert wrapper is not None
            known = {id(parameter) for parameter in self._known if parameter.requires_grad}
            paths = [path for path, p in wrapper.module.named_parameters() if id(p) in known]
            raise CannotThaw(
                "this DistributedDataParallel took in the parameters that required a gradient when it was made. What "
                "was held then is held no more, and it would exchange no gradients of it.\n"
                f"  where: {_named(paths)}\n"
                "  fix: DistributedDataParallel(model) anew, or go on within the hold"
            )
        return self._forward(*args, **kwargs)


def refuse_freeze(plan: FreezePlan) -> None:
    """Refuse to freeze parameters whose gradients a live wrapper waits for.

    Raises:
        CannotFreeze: there are such.
    """
    stopped = {path: parameter for path, parameter in plan.parameters.items() if parameter.requires_grad}
    if not stopped or not several_processes():
        return
    waited = _waited_for(plan.root, stopped)
    if waited:
        gc.collect()
        waited = _waited_for(plan.root, stopped)
    if waited:
        raise CannotFreeze(
            "freeze: DistributedDataParallel waits for the gradients of all parameters that required one when it was "
            "made, and the next step but one would fail.\n"
            f"  where: {_named(waited)}\n"
            "  fix: freeze before wrapping, or ddp = frostline.freezing.rewrap(ddp, lambda: fl.freeze(model, ...))"
        )


def _waited_for(model: nn.Module, stopped: Mapping[str, nn.Parameter]) -> list[str]:
    waiting: set[int] = set()
    for wrapper in wrappers_of(model):
        if _ALLOWED not in vars(wrapper) and waits_for_all(wrapper):
            waiting |= exchanged_by(wrapper).keys()
    return [path for path, parameter in stopped.items() if id(parameter) in waiting]


def _named(paths: list[str]) -> str:
    return names.name_folded(paths)
