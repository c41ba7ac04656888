"""Everything that a model has at one moment, to be compared and put back: also what is neither parameter nor buffer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from frostline.state.changes import Change
from frostline.state.digest import digest_all
from frostline.state.snapshot import snapshot

TABLES = ("_parameters", "_buffers", "_modules")
_CONTAINERS = (dict, list, set)


class KeptState:
    """Everything that a model had, to be compared and put back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.snapshot = snapshot(model, values=True)
        # The very objects, and what containers among them hold: parameters, buffers and hooks are such containers.
        self._plain = {path: dict(module.__dict__) for path, module in model.named_modules()}
        self._contents = {
            path: {name: copy.copy(each) for name, each in module.__dict__.items() if isinstance(each, _CONTAINERS)}
            for path, module in model.named_modules()
        }
        self._modules = dict(model.named_modules())
        self._grads = {path: (p.grad, _copy(p.grad)) for path, p in model.named_parameters()}
        self.attributes = {path: tensor.detach().clone() for path, tensor in _attributes(model).items()}
        self._live = _attributes(model)
        # Where the values lie: `tensor.data = other` makes a tensor share the memory of another one.
        tensors = (*model.parameters(), *model.buffers(), *self._live.values())
        self._memory = [(tensor, tensor.data) for tensor in tensors]

    def moved(self) -> list[Change]:
        """The entries that are not what they were, and attributes that hold a tensor that they did not."""
        rows = self.snapshot.diff(self._model).moved
        now = _attributes(self._model)
        before = digest_all(self.attributes)
        after = digest_all({path: tensor.detach() for path, tensor in now.items()})
        for path in dict.fromkeys([*before, *after]):
            if before.get(path) != after.get(path):
                old, new = self.attributes.get(path), now.get(path)
                size = None if old is None or new is None else gap(old, new.detach())
                module = path.rpartition(".")[0]
                what = "changed" if path in before and path in after else "added" if path in after else "removed"
                rows.append(
                    Change(path, "attribute", "attribute", module, "", what, before.get(path), after.get(path), size)
                )
        return rows

    def sharing(self, path: str) -> str:
        """The attribute of the same module whose memory is that of an entry that moved; empty if there is none."""
        tensors = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        entry = tensors.get(path)
        if entry is None:
            return ""
        owner = path.rpartition(".")[0]
        place = entry.untyped_storage().data_ptr()
        for name, tensor in _attributes(self._model).items():
            if name.rpartition(".")[0] == owner and place and tensor.untyped_storage().data_ptr() == place:
                return name
        return ""

    def put_back(self) -> None:
        """Put everything back, to the bit."""
        for path, module in self._modules.items():
            for name in [name for name in module.__dict__ if name not in self._plain[path]]:
                del module.__dict__[name]
            module.__dict__.update(self._plain[path])
            for name, content in self._contents[path].items():
                container = module.__dict__[name]
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)
        for path, parameter in self._model.named_parameters():
            parameter.grad, values = self._grads[path]
            if parameter.grad is not None and values is not None:
                parameter.grad.detach().copy_(values)
        for tensor, memory in self._memory:
            if tensor.data_ptr() != memory.data_ptr():
                tensor.data = memory
        self.snapshot.restore(self._model)
        with torch.no_grad():
            for path, tensor in self._live.items():
                if not same(tensor.detach(), self.attributes[path]):
                    tensor.detach().copy_(self.attributes[path])


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _attributes(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that modules keep beside parameters and buffers, one container deep."""
    entries = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        for name, value in module.__dict__.items():
            if name not in TABLES:
                held = _held(f"{prefix}.{name}" if prefix else name, value)
                found.update({path: tensor for path, tensor in held if id(tensor) not in entries})
    return found


def _held(path: str, value: Any) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(path, value)]
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return [(f"{path}[{key!r}]", each) for key, each in items if isinstance(each, Tensor)]
    if isinstance(value, (list, tuple)):
        values = enumerate(cast("Sequence[Any]", value))
        return [(f"{path}[{place}]", each) for place, each in values if isinstance(each, Tensor)]
    return []


def same(one: Tensor, other: Tensor) -> bool:
    """Equality to the bit, of NaN too."""
    return digest_all({"": one}) == digest_all({"": other})


def gap(one: Tensor, other: Tensor | None) -> float | None:
    """The largest absolute difference; ``None`` where there is none to tell."""
    if other is None or one.shape != other.shape or one.numel() == 0:
        return None
    return float((one.detach().double() - other.detach().double()).abs().max())
