"""Whether a model and its optimizer can be watched for layers that converge; else it is refused before it begins."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.optim import LBFGS, Optimizer

from frostline.errors import ModelError, name_some
from frostline.freezing.step_guard import as_optimizers


def check_setting(name: str, value: object, fits: bool, wanted: str) -> None:
    """Refuse a setting that makes no sense.

    Raises:
        ModelError: it does not fit.

    Example:
        >>> check_setting("patience", 2, True, "1 or more")
    """
    if not fits:
        raise ModelError(f"Converged({name}={value!r}): that makes no sense\n  fix: {wanted}")


def refuse_parallel(model: nn.Module) -> None:
    """Refuse what waits for the gradients of a fixed set of parameters.

    Raises:
        ModelError: it does.
    """
    inner = model
    while (compiled := inner._modules.get("_orig_mod")) is not None:
        inner = compiled
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        raise ModelError(
            "Converged: DistributedDataParallel waits for gradients of what required them when it was made\n"
            "  fix: watch the module inside, and wrap it anew after each freeze"
        )


def the_stepping_one(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer that was meant.

    Raises:
        ModelError: there is not exactly one, or it does not move each parameter by itself, or calls no hooks.
    """
    several = as_optimizers(optimizer)
    if len(several) != 1:
        raise ModelError(f"Converged: expected one optimizer, got {len(several)}\n  fix: the one that trains the trunk")
    found = several[0]
    if isinstance(found, LBFGS):
        raise ModelError(
            "Converged: LBFGS moves all its parameters as one vector, so that no layer comes to rest by itself\n"
            "  fix: an optimizer that steps each parameter"
        )
    if not hasattr(found, "_optimizer_step_pre_hooks"):
        raise ModelError(
            f"Converged: {type(found).__name__} does not call Optimizer.__init__, and has not all of torch's hooks\n"
            "  fix: pass the optimizer inside, if it is a wrapper of one"
        )
    return found


def refuse_missing(layers: Mapping[int, Mapping[str, nn.Parameter]], optimizer: Optimizer) -> None:
    """Refuse trainable parameters that the optimizer does not hold: they stand still, and have not converged.

    Raises:
        ModelError: there are some.
    """
    registered = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [
        path for members in layers.values() for path, parameter in members.items() if id(parameter) not in registered
    ]
    if missing:
        raise ModelError(
            f"Converged: the optimizer does not hold what it is to train: {name_some(missing)}\n"
            "  fix: fl.freeze() it if it is frozen, else make the optimizer from all parameters"
        )
