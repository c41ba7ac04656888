"""Whether a model and its optimizer can be watched for layers that converge; else it is refused before it begins."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer

from frostline.errors import ModelError, name_some
from frostline.optim import steppable


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
    steppable.refuse_parallel(
        model,
        "Converged: DistributedDataParallel waits for gradients of what required them when it was made\n"
        "  fix: watch the module inside, and wrap it anew after each freeze",
    )


def the_stepping_one(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer that was meant.

    Raises:
        ModelError: there is not exactly one, or it does not move each parameter by itself, or calls no hooks.
    """
    return steppable.the_one(
        optimizer,
        "Converged",
        hooks="_optimizer_step_pre_hooks",
        several="the one that trains the trunk",
        lbfgs="so that no layer comes to rest by itself\n  fix: an optimizer that steps each parameter",
    )


def refuse_missing(layers: Mapping[int, Mapping[str, nn.Parameter]], optimizer: Optimizer) -> None:
    """Refuse trainable parameters that the optimizer does not hold: they stand still, and have not converged.

    Raises:
        ModelError: there are some.
    """
    missing = [path for members in layers.values() for path in steppable.not_held(members, optimizer)]
    if missing:
        raise ModelError(
            f"Converged: the optimizer does not hold what it is to train: {name_some(missing)}\n"
            "  fix: fl.freeze() it if it is frozen, else make the optimizer from all parameters"
        )
