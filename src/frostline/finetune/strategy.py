"""How a run divides the work between trunk and head: which rates, and what begins to train when.

Knows models with a trunk and heads; knows nothing of data or of the loop.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from frostline.optim.depth import depth_of
from frostline.optim.groups import ParamGroups, param_groups
from frostline.optim.unfreeze import Epoch, Unfreeze, gradual, probe_then_tune
from frostline.state.selection import Selector, exactly
from frostline.tasks.task_model import TaskModel

Strategy = Literal["head", "full", "discriminative", "gradual", "probe-then-tune"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
RateSchedule = Literal["constant", "cosine"]
RATE_SCHEDULES: tuple[str, ...] = get_args(RateSchedule)
# The classifier learns at ten times the rate of a trunk that was trained before.
TRUNK_SHARE = 0.1
# What AdamW has by itself; norms and biases are spared.
WEIGHT_DECAY = 0.01
# By then everything trains; the rest of the epochs is for training it.
_UNFROZEN_BY = 2 / 3
_PROBE_SHARE = 1 / 2
_WARMUP_EPOCHS = 1 / 4


def groups_for(model: TaskModel, task: str, strategy: str, lr: float) -> ParamGroups:
    """The optimizer's groups for what trains, now or later, in one phase.

    Args:
        model: the trunk with its heads; what does not require gradients now is left out.
        task: the head that trains.
        strategy: one of :data:`STRATEGIES`.
        lr: the rate of the head; a trunk that trains beside a new head gets a tenth of it, but for ``full``.
    """
    head = exactly(f"heads.{task}")
    if strategy in {"head", "full"}:
        trunk_lr, layers = lr, None
    else:
        # With groups for each layer, a part that is unfrozen warms up by itself.
        trunk_lr, layers = lr * TRUNK_SHARE, 1.0 if strategy in {"gradual", "probe-then-tune"} else None
    return param_groups(
        model,
        trunk_lr,
        head=head,
        head_lr=lr,
        layer_decay=layers,
        weight_decay=WEIGHT_DECAY,
        by=_depth_in(model),
        frozen="out",
    )


def unfreezing_for(model: TaskModel, strategy: str, epochs: int, steps: int) -> Unfreeze | None:
    """What begins to train when; nothing where all of it trains from the start.

    Args:
        model: the trunk with its heads.
        strategy: one of :data:`STRATEGIES`.
        epochs: how many there are.
        steps: of an epoch.
    """
    if strategy not in {"gradual", "probe-then-tune"}:
        return None
    # The other heads are held by the phase itself, and so is what of the trunk should stay.
    rest: list[Selector] = [exactly(f"heads.{name}") for name in model.heads]
    rest += [exactly(path) for path, p in model.named_parameters() if not p.requires_grad and path.startswith("trunk.")]
    warmup = max(1, round(steps * _WARMUP_EPOCHS))
    if strategy == "probe-then-tune":
        return probe_then_tune(model, at=Epoch(max(1, round(epochs * _PROBE_SHARE))), head=rest, warmup=warmup)
    stages = max(1, math.floor(epochs * _UNFROZEN_BY))
    depths = depth_of(model, by=_depth_in(model), head=rest)
    trunk = {depth for name, depth in depths.of.items() if name not in depths.head}
    layers = max(1, math.ceil(len(trunk) / stages))
    return gradual(model, every=Epoch(1), head=rest, by=_depth_in(model), layers=layers, warmup=warmup)


def told_of_epochs(strategy: str, epochs: int) -> tuple[str, ...]:
    """A warning where there are too few epochs for what the strategy says.

    Example:
        >>> told_of_epochs("gradual", 3), told_of_epochs("head", 1)
        ((), ())
        >>> told_of_epochs("probe-then-tune", 1)[0].partition(", ")[0]
        '--strategy probe-then-tune with --epochs 1: the trunk does not train'
    """
    if strategy not in {"gradual", "probe-then-tune"}:
        return ()
    asked = f"--strategy {strategy} with --epochs {epochs}"
    if epochs < 2:
        more = "--epochs 3 or more trains it in stages" if strategy == "gradual" else "--epochs 2 or more trains it"
        return (f"{asked}: the trunk does not train, for it would begin to after the last epoch ({more})",)
    if strategy == "gradual" and math.floor(epochs * _UNFROZEN_BY) < 2:
        return (f"{asked}: all of the trunk is unfrozen in one go (--epochs 3 or more unfreezes it in stages)",)
    return ()


def rate_factor(schedule: str, step: int, steps: int) -> float:
    """What the rates are multiplied with at a step, counted from 0.

    Example:
        >>> [round(rate_factor("cosine", step, 4), 2) for step in range(4)], rate_factor("constant", 9, 10)
        ([1.0, 0.85, 0.5, 0.15], 1.0)
    """
    return 1.0 if schedule == "constant" else (1 + math.cos(math.pi * step / max(1, steps))) / 2


def _depth_in(model: TaskModel) -> Any:
    """Depth told by the trunk alone, which may be a model that tells it itself."""
    of = depth_of(model.trunk).of

    def depth(path: str) -> int:
        return of.get(path.removeprefix("trunk."), 0) if path.startswith("trunk.") else 0

    return depth
