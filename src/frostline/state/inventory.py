"""Every state entry of a model: parameters, buffers, modes, flags and the configuration that a checkpoint omits.

Reads only. A model is walked under every name it has, so that tied tensors and shared modules show up under each.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from frostline.state import names
from frostline.state.aliases import find_aliases
from frostline.state.roles import is_norm, role_of
from frostline.tables import html_table, text_table

SCHEMA_VERSION = 1
TENSOR_KINDS = ("parameter", "buffer")
_NORM_CONFIG = ("eps", "momentum", "affine", "elementwise_affine", "track_running_stats", "num_groups")


@dataclass(frozen=True)
class Entry:
    """One state entry.

    Attributes:
        path: its dotted path; for a flag, the path of its module or parameter with the flag's name behind it.
        kind: ``parameter``, ``buffer``, ``mode``, ``requires_grad``, ``config`` or ``extra``.
        role: what it is for, ``norm.mean`` for example.
        module: the path of the module that owns it; empty for the root.
        module_type: the class name of that module.
        value: the live tensor of a parameter or buffer; the value itself of anything else.
        persistent: whether a ``state_dict`` carries it.
        aliases: other paths whose bytes overlap: tied parameters, views of one storage, modules with several names.
    """

    path: str
    kind: str
    role: str
    module: str
    module_type: str
    value: Any = field(repr=False)
    persistent: bool
    aliases: tuple[str, ...] = ()

    @property
    def is_tensor(self) -> bool:
        """Whether the entry is a parameter or a buffer."""
        return self.kind in TENSOR_KINDS

    @property
    def numel(self) -> int:
        """How many elements the tensor has; 0 for a flag and for a lazy parameter."""
        return self.value.numel() if self.is_tensor and not torch.nn.parameter.is_lazy(self.value) else 0

    @property
    def nbytes(self) -> int:
        """How many bytes the tensor's elements take."""
        return self.numel * self.value.element_size() if self.numel else 0

    @property
    def shown(self) -> str:
        """The value in a few words: shape and dtype of a tensor, the type of an extra state."""
        if self.is_tensor:
            lazy = torch.nn.parameter.is_lazy(self.value)
            shape = "lazy" if lazy else "x".join(map(str, self.value.shape)) or "scalar"
            return f"{shape} {str(self.value.dtype).removeprefix('torch.')}"
        if self.kind == "mode":
            return "train" if self.value else "eval"
        return f"a {type(self.value).__name__}" if self.kind == "extra" else str(self.value)

    def to_dict(self) -> dict[str, Any]:
        """The entry as JSON-ready values; tensors are described, not copied."""
        row: dict[str, Any] = {
            "path": self.path,
            "kind": self.kind,
            "role": self.role,
            "module": self.module,
            "module_type": self.module_type,
            "persistent": self.persistent,
            "aliases": list(self.aliases),
        }
        if self.is_tensor:
            lazy = torch.nn.parameter.is_lazy(self.value)
            row |= {
                "dtype": str(self.value.dtype).removeprefix("torch."),
                "shape": None if lazy else list(self.value.shape),
                "device": str(self.value.device),
                "requires_grad": self.value.requires_grad,
            }
        else:
            row["value"] = self.value if isinstance(self.value, (bool, int, float, str, type(None))) else self.shown
        return row


class Inventory(dict[str, Entry]):
    """Path to :class:`Entry`, in the order of the model; prints as a table, also in a notebook."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Path to live tensor, parameters and buffers only."""
        return {path: entry.value for path, entry in self.items() if entry.is_tensor}

    def of(self, *kinds: str) -> Inventory:
        """The entries of the given kinds.

        Example:
            >>> list(inventory(nn.Linear(1, 1)).of("parameter"))
            ['weight', 'bias']
        """
        return Inventory({path: entry for path, entry in self.items() if entry.kind in kinds})

    def to_json(self) -> dict[str, Any]:
        """The inventory as JSON-ready values with a schema version."""
        return {"schema_version": SCHEMA_VERSION, "entries": [entry.to_dict() for entry in self.values()]}

    def __str__(self) -> str:
        return text_table(_COLUMNS, self._rows(), width=100) + "\n" + self._totals()

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows(), caption=self._totals())

    def _rows(self) -> list[list[object]]:
        rows: list[list[object]] = []
        for entry in self.values():
            note = "" if entry.persistent or not entry.is_tensor else "not in state_dict"
            note = f"= {entry.aliases[0]}" if entry.aliases and entry.is_tensor else note
            rows.append([entry.path, entry.kind, entry.role, entry.shown, note])
        return rows

    def _totals(self) -> str:
        parameters = self.of("parameter").values()
        buffers = self.of("buffer").values()
        elements = sum(_once(parameters))
        return (
            f"{len(parameters)} parameters ({elements:,} elements), {len(buffers)} buffers, "
            f"{len(self.of('mode'))} modules"
        )


_COLUMNS = ["path", "kind", "role", "value", "note"]


def inventory(model: nn.Module) -> Inventory:
    """List every state entry of a model.

    Parameters and buffers (persistent or not) under all of their names, tensors that parametrizations keep, the mode of
    every module, ``requires_grad`` of every parameter, the configuration of normalization, dropout and recurrent
    layers, and what ``get_extra_state`` returns. Nothing is changed and no value is copied.

    Args:
        model: any module; ``torch.compile`` and data-parallel wrappers are looked through.

    Returns:
        Path to :class:`Entry`.

    Example:
        >>> entries = inventory(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        >>> entries["1.running_mean"].role, entries["1.training"].value
        ('norm.mean', True)
    """
    model = names.unwrap(model)
    entries = Inventory({entry.path: entry for entry in _entries(model)})
    for path, aliases in find_aliases(entries.tensors).items():
        entries[path] = replace(entries[path], aliases=tuple(aliases))
    return entries


def entries_at(model: nn.Module, paths: Collection[str]) -> Inventory:
    """The entries at these paths, as far as the model has them, without looking for aliases.

    Verification comes here at every step, and most of what a whole inventory does would be for nothing.

    Example:
        >>> list(entries_at(nn.BatchNorm1d(2), {"running_mean", "training", "none"}))
        ['running_mean', 'training']
    """
    return Inventory({entry.path: entry for entry in _entries(names.unwrap(model), paths)})


def owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module, str]]]:
    """Every place a parameter is registered at: id of the parameter to ``(path, owner, local name)``.

    Example:
        >>> a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> b.weight = a.weight
        >>> [path for path, _, _ in owners(nn.Sequential(a, b))[id(a.weight)]]
        ['0.weight', '1.weight']
    """
    places: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, module in names.unwrap(model).named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((names.join(path, name), module, name))
    return places


def _once(entries: Any) -> Iterator[int]:
    """Element counts, tied tensors once."""
    seen: set[int] = set()
    for entry in entries:
        if id(entry.value) not in seen:
            seen.add(id(entry.value))
            yield entry.numel


def _entries(model: nn.Module, wanted: Collection[str] | None = None) -> Iterator[Entry]:
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        type_name = type(module).__name__
        for name, kind, value, persistent in _of_module(module, prefix, wanted):
            role = role_of(module, name, kind=kind)
            yield Entry(prefix + name, kind, role, path, type_name, value, persistent)


def _of_module(module: nn.Module, prefix: str, wanted: Collection[str] | None) -> Iterator[tuple[str, str, Any, bool]]:
    """Name, kind, value and persistence of what a module itself owns."""

    def is_wanted(name: str) -> bool:
        return wanted is None or prefix + name in wanted

    for name, parameter in module._parameters.items():
        if parameter is not None:
            if is_wanted(name):
                yield name, "parameter", parameter, True
            if is_wanted(flag := f"{name}.requires_grad"):
                yield flag, "requires_grad", parameter.requires_grad, False
    for name, buffer in module._buffers.items():
        if buffer is not None and is_wanted(name):
            yield name, "buffer", buffer, name not in module._non_persistent_buffers_set
    if is_wanted("training"):
        yield "training", "mode", module.training, False
    for name, value in _configuration(module):
        if is_wanted(name):
            yield name, "config", value, False
    if type(module).get_extra_state is not nn.Module.get_extra_state and is_wanted("extra_state"):
        yield "extra_state", "extra", module.get_extra_state(), True


def _configuration(module: nn.Module) -> Iterator[tuple[str, Any]]:
    if is_norm(module):
        for name in _NORM_CONFIG:
            if name in module.__dict__:
                yield name, module.__dict__[name]
    elif isinstance(module, nn.RNNBase):
        yield "dropout", module.dropout
    else:
        # torch's dropouts keep `p`, timm's DropPath `drop_prob`, torchvision's StochasticDepth `p`.
        drops = re.search("drop|stochasticdepth", type(module).__name__.lower()) is not None
        for name in ("p", "drop_prob"):
            value = module.__dict__.get(name)
            if (drops or name == "drop_prob") and isinstance(value, (int, float)) and not isinstance(value, bool):
                yield name, value
