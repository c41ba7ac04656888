"""What an optimizer has to be for something that follows its steps: a schedule that unfreezes, a watcher that freezes.

Knows optimizers and wrappers; what is said of one that does not fit is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.optim import LBFGS, Optimizer

from frostline.errors import ModelError
from frostline.freezing.step_guard import as_optimizers


def refuse_parallel(model: nn.Module, said: str) -> None:
    """Refuse what exchanges the gradients of a fixed set of parameters.

    Raises:
        ModelError: it does, with what is to be said of it.
    """
    inner = model
    while (compiled := inner._modules.get("_orig_mod")) is not None:
        inner = compiled
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        raise ModelError(said)


def the_one(optimizer: Optimizer, who: str, *, hooks: str, several: str, lbfgs: str) -> Optimizer:
    """The torch optimizer that was meant, inside its wrappers.

    Args:
        optimizer: what was given.
        who: asks, for messages.
        hooks: the attribute that an optimizer has which calls the hooks that are needed.
        several: the fix where there is not exactly one.
        lbfgs: why LBFGS will not do, and the fix.

    Raises:
        ModelError: there is not exactly one, it moves all its parameters as one vector, or it calls no hooks.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> the_one(sgd, "Here", hooks="_optimizer_step_pre_hooks", several="one", lbfgs="none") is sgd
        True
    """
    found = as_optimizers(optimizer)
    if len(found) != 1:
        raise ModelError(f"{who}: expected one optimizer, got {len(found)}\n  fix: {several}")
    if isinstance(found[0], LBFGS):
        raise ModelError(f"{who}: LBFGS moves all its parameters as one vector, {lbfgs}")
    if not hasattr(found[0], hooks):
        raise ModelError(
            f"{who}: {type(found[0]).__name__} does not call Optimizer.__init__, and has not all of torch's hooks\n"
            "  fix: pass the optimizer inside, if it is a wrapper of one"
        )
    return found[0]


def not_held(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> list[str]:
    """The paths of parameters that no group of an optimizer holds.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1)
        >>> not_held(dict(layer.named_parameters()), torch.optim.SGD([layer.weight], lr=0.1))
        ['bias']
    """
    registered = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [path for path, parameter in parameters.items() if id(parameter) not in registered]
