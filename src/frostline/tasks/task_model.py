"""One trunk and named heads as a module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from frostline.errors import ModelError, name_some


class TaskModel(nn.Module):
    """A trunk whose features feed several heads.

    Its parts have the paths ``trunk`` and ``heads.NAME``; trunk and heads are the very modules that were given.

    Args:
        trunk: maps a batch to features, (N, ...) to (N, F) as a rule.
        heads: name to the module that maps features to (N, classes).

    Raises:
        ModelError: there is no head, or one has a name that a path cannot have or that ``nn.ModuleDict`` uses itself.

    Example:
        >>> import torch
        >>> model = TaskModel(nn.Linear(4, 3), {"digit": nn.Linear(3, 10), "parity": nn.Linear(3, 2)})
        >>> model(torch.zeros(5, 4), "parity").shape
        torch.Size([5, 2])
        >>> sorted(model(torch.zeros(5, 4)))
        ['digit', 'parity']
    """

    def __init__(self, trunk: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not heads:
            raise ModelError("TaskModel: there is no head.\n  fix: pass at least one, heads={'task': nn.Linear(...)}")
        self.trunk = trunk
        self.heads = nn.ModuleDict()
        for name, head in heads.items():
            if not name or "." in name or hasattr(self.heads, name):
                taken = "is taken by nn.ModuleDict or by another head" if hasattr(self.heads, name) else "makes no path"
                raise ModelError(f"TaskModel: a head cannot be named {name!r}, which {taken}.\n  fix: another name")
            self.heads[name] = head

    def forward(self, inputs: Tensor, task: str | None = None) -> Tensor | dict[str, Tensor]:
        """The logits of one task, or of all; the trunk runs once."""
        features = self.trunk(inputs)
        if task is None:
            return {name: head(features) for name, head in self.heads.items()}
        return self.heads[self.known(task)](features)

    def known(self, task: str) -> str:
        """The task itself, if there is a head for it.

        Raises:
            ModelError: there is none; the heads are named.
        """
        if task not in self.heads:
            raise ModelError(f"task {task!r}: there is no such head.\n  heads: {name_some(list(self.heads))}")
        return task

    def others(self, task: str) -> list[str]:
        """The names of the other heads, in their order."""
        return [name for name in self.heads if name != self.known(task)]
