"""What of a model trains in a phase and what is held, in two lines that are said before the first epoch."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from frostline.state.names import is_under, join, name_folded
from frostline.tasks.task_model import TaskModel


def told_parts(model: TaskModel, strategy: str, held: Collection[str]) -> tuple[str, str]:
    """Say what trains and what is held, each by the fewest modules.

    Args:
        model: the trunk with its heads, with the phase's hold in place.
        strategy: of the phase; what a schedule unfreezes later is said to come later.
        held: the paths of what is held to the end.

    Example:
        >>> model = TaskModel(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), {"a": nn.Linear(2, 2)})
        >>> told_parts(model, "head", {"trunk.0.weight", "trunk.0.bias"})
        ('trains: trunk.1, heads.a', 'held: trunk.0')
    """
    parameters = {path for path, parameter in model.named_parameters() if parameter.requires_grad} - set(held)
    buffers = {path for path, _ in model.named_buffers()} - set(held)
    parts = [
        part
        for part in _fewest(model, parameters | buffers)
        # Buffers alone do not train.
        if any(is_under(path, part) for path in parameters)
    ]
    if strategy in {"gradual", "probe-then-tune"}:
        later = [part for part in parts if part.split(".")[0] == "trunk"]
        now = [part for part in parts if part not in later]
        trains = f"{_named(now)}; later, by --strategy {strategy}: {_named(later)}"
    else:
        trains = _named(parts)
    return f"trains: {trains}", f"held: {_named(_fewest(model, set(held)))}"


def _fewest(model: TaskModel, chosen: set[str]) -> list[str]:
    """The highest modules below the model of which every tensor is chosen, and the chosen tensors beside them."""
    return [part for name, child in model.named_children() for part in _covering(child, name, chosen)]


def _covering(module: nn.Module, path: str, chosen: set[str]) -> list[str]:
    tensors = [name for name, _ in (*module.named_parameters(path), *module.named_buffers(path))]
    found = [name for name in tensors if name in chosen]
    if not found:
        return []
    # All heads together are no part that anyone has named, so each stands for itself.
    if len(found) == len(tensors) and path != "heads":
        return [path]
    own = [join(path, name) for name in (*module._parameters, *module._buffers)]
    below = [part for name, child in module.named_children() for part in _covering(child, join(path, name), chosen)]
    return [*(name for name in own if name in chosen), *below]


def _named(parts: list[str]) -> str:
    return name_folded(parts) or "nothing"
