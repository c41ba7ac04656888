"""What is trained in which order: a model with heads, phases over data, and a probe for the proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from frostline.errors import NothingSelected
from frostline.state.selection import Selector, select
from frostline.tasks.task_model import TaskModel


def held_part(trunk: nn.Module, selectors: tuple[str, ...], strategy: str = "head") -> tuple[Selector, ...]:
    """What of the trunk is held from the first step to the last. Asked before anything is written.

    What was asked for; otherwise all of it where the head alone trains, and nothing where the trunk does.

    Raises:
        NothingSelected: a selector matches nothing, or nothing that could move.

    Example:
        >>> held_part(nn.Sequential(nn.Linear(1, 1)), ())
        ('*',)
    """
    if not selectors and strategy != "head":
        return ()
    selectors = selectors or ("*",)
    selection = select(trunk, *selectors)
    if not selection.parameters and not selection.buffers:
        raise NothingSelected(
            f"--freeze {' --freeze '.join(selectors)}: what it matches in the trunk has no parameters and no buffers, "
            "so nothing would be held.\n  fix: name a part of the trunk; the old classifier is held in any case"
        )
    return selectors


@dataclass(frozen=True)
class Phase:
    """One task, trained for some epochs.

    Attributes:
        task: the head that trains.
        epochs: how often.
        lr: the learning rate.
        trunk: what of the trunk is held meanwhile, besides the other heads; empty holds nothing of it.
        train: pairs of input and class.
        val: likewise.
        strategy: what of the rest trains when, and at which rate.
        about: what a reader should know of its data, said where it begins.
    """

    task: str
    epochs: int
    lr: float
    trunk: tuple[Selector, ...]
    train: Dataset[Any]
    val: Dataset[Any]
    strategy: str = "full"
    about: str = ""


@dataclass(frozen=True)
class Problem:
    """All that a run needs. The last phase is the one whose proof is given.

    Attributes:
        title: what is learned, in a few words.
        model: the trunk with its heads, on the host, as initialized.
        phases: in their order.
        probe: inputs and labels on which the heads are compared before and after.
        probe_heads: the heads whose labels the probe has.
        facts: name and value of what a reader should know about data and model.
        warnings: what a reader should be warned of.
        export: the tensors of ``model.safetensors``, under the names that the user's model has.
        notes: sentences that are said before training; they are among the warnings too.
        heads: of the heads in ``model.safetensors``, name to the path of its weights there, and to its classes.
        load: the Python that loads that file, with ``FILE`` for its path.
    """

    title: str
    model: TaskModel
    phases: tuple[Phase, ...]
    probe: Dataset[Any]
    probe_heads: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    export: Callable[[TaskModel], dict[str, Tensor]]
    notes: tuple[str, ...] = ()
    heads: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict[str, tuple[str, tuple[str, ...]]])
    load: str = "safetensors.torch.load_file(FILE)"
