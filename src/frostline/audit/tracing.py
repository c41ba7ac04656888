"""Looks at every operator of one step: which of them writes into tensors that must stay, and on which line.

A dispatch mode sees operators with what they write as their schemas say. Batch norm's operators write running
statistics that their schemas hide: a table on the side names them. What changes without any operator was written past
the dispatcher: by numpy, through the storage, by another library.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from frostline.audit.places import Place, frames, in_stack, kind_of, user_place
from frostline.audit.seen import Write
from frostline.audit.writes import declared_writes

# Operators whose schemas hide that they write: the arguments they write to, and the one that says whether they do.
# Source: aten/src/ATen/native/native_functions.yaml, and `_version` measured on torch 2.13.
_HIDDEN: dict[str, tuple[tuple[int, ...], int]] = {
    "aten.native_batch_norm": ((3, 4), 5),
    "aten.batch_norm": ((3, 4), 5),
    "aten.cudnn_batch_norm": ((3, 4), 5),
    "aten.miopen_batch_norm": ((3, 4), 5),
    "aten._batch_norm_impl_index": ((3, 4), 5),
    "aten.native_batch_norm.out": ((3, 4), 5),
}
_BATCH_NORMS = {*_HIDDEN, "aten._native_batch_norm_legit", "aten._batch_norm_with_update"}
_BATCH_ONLY = {"aten._native_batch_norm_legit.no_stats"}
_ATTEND = "scaled_dot_product_attention"
_RANDOM = {"aten.bernoulli", "aten.bernoulli_", "aten.native_dropout", "aten._fused_dropout"}
_ATTENTION = {
    "aten._scaled_dot_product_flash_attention": 3,
    "aten._scaled_dot_product_flash_attention_for_cpu": 3,
    "aten._scaled_dot_product_efficient_attention": 5,
    "aten._scaled_dot_product_cudnn_attention": 5,
    "aten._scaled_dot_product_attention_math": 4,
}


@dataclass(frozen=True)
class _Region:
    path: str
    start: int
    end: int


class WriteTrace(TorchDispatchMode):
    """Finds the writes into some tensors while it is active; what is computed stays the same to the bit.

    Attributes:
        found: the writes, the first of each operator and line.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        *,
        in_optimizer: Callable[[], bool],
        forward_place: Callable[[], Place],
    ) -> None:
        super().__init__()
        self._forward_place = forward_place
        self.found: list[Write] = []
        self._in_optimizer = in_optimizer
        self._ids = {id(tensor): path for path, tensor in tensors.items()}
        self._storages: dict[int, list[str]] = {}
        self._regions: list[_Region] = []
        for path, tensor in tensors.items():
            try:
                storage = tensor.untyped_storage()
                self._storages.setdefault(storage._cdata, []).append(path)
                start = tensor.data_ptr()
                self._regions.append(_Region(path, start, start + tensor.nbytes))
            except (RuntimeError, NotImplementedError):
                continue  # a subclass without memory of its own: its digest still tells that it moved
        self._seen: set[tuple[str, str, str, int]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        written = list(_written(func, args, kwargs or {}))
        if written:
            for tensor in written:
                for path in self._paths(tensor):
                    self._note(path, func, tensor)
        return result

    def _paths(self, tensor: Tensor) -> list[str]:
        if type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter:
            return [self._ids[id(tensor)]] if id(tensor) in self._ids else []
        try:
            shared = self._storages.get(tensor.untyped_storage()._cdata)
            pointer = tensor.data_ptr()
        except (RuntimeError, NotImplementedError):
            return []
        if shared and len(shared) == 1:
            return shared
        # Another storage object over the same memory (dlpack), or one storage that several tensors share.
        end = pointer + max(tensor.nbytes, 1)
        return [region.path for region in self._regions if region.start < end and pointer < region.end]

    def _note(self, path: str, func: Any, tensor: Tensor) -> None:
        if _is_broadcast():
            return
        name = _name(func)
        # Norm layers write in any forward pass: the line that called the model says more than the one inside of it.
        place = self._forward_place() if _base(name) in _BATCH_NORMS or _is_norm_copy() else user_place(3)
        key = (path, name, place.file, place.line)
        if key in self._seen:
            return
        self._seen.add(key)
        # `.data` and `detach()` are no views.
        aside = id(tensor) not in self._ids and not tensor._is_view()
        self.found.append(
            Write(
                path,
                name,
                place,
                via_data=aside,
                in_optimizer=self._in_optimizer(),
            )
        )


_BROADCASTS = frozenset({"_sync_buffers", "_sync_module_buffers"})


@dataclass(frozen=True)
class RawDraw:
    """An operator that only training needs: its name, what it does, and the line."""

    op: str
    what: str
    place: Place
    module: Any


class DrawTrace(TorchDispatchMode):
    """Finds what only training needs in a forward pass in eval mode: dropout, and statistics of the batch.

    Attributes:
        found: the operators, the first of each kind, module and line.
    """

    def __init__(self, running: Callable[[], Any]) -> None:
        super().__init__()
        self.found: list[RawDraw] = []
        self._running = running
        self._seen: set[tuple[str, int, str, int]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        what = _only_for_training(func, name, args, kwargs)
        if what:
            place, module = user_place(2), self._running()
            key = (name, id(module), place.file, place.line)
            if key not in self._seen:
                self._seen.add(key)
                self.found.append(RawDraw(name, what, place, module))
        return func(*args, **kwargs)


def _only_for_training(func: Any, name: str, args: Any, kwargs: Any) -> str:
    if name in _RANDOM:
        # On the CPU attention is taken apart, and drops with the same operator; the line that called it tells.
        inner = next((f for f in frames(sys._getframe(1)) if not _passes_on(f.f_code.co_filename)), None)
        attends = inner is not None and _ATTEND in linecache.getline(inner.f_code.co_filename, inner.f_lineno)
        return "attention" if attends else "dropout"
    base = _base(name)
    if base in _ATTENTION:
        return "attention" if float(_argument(func, args, kwargs, "dropout_p") or 0.0) > 0 else ""
    if base in _BATCH_NORMS:
        training = _argument(func, args, kwargs, "training")
        # Instance norm and the standardization of weights normalize one long row; that is no batch.
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.dim() and first.shape[0] == 1:
            return ""
        always = name in _BATCH_ONLY or base == "aten._batch_norm_with_update"
        return "batch_norm" if training is True or always else ""
    return ""


def _passes_on(file: str) -> bool:
    """Whether a frame's file only brings an operator to the mode."""
    return kind_of(file) == "ours" or file.endswith("torch/_compile.py") or "_dynamo" in file


def _argument(func: Any, args: Any, kwargs: Any, wanted: str) -> Any:
    if wanted in kwargs:
        return kwargs[wanted]
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == wanted:
            return args[position] if position < len(args) else argument.default_value
    return None


def _is_norm_copy() -> bool:
    """Instance norm normalizes copies of its statistics and writes them back."""
    return in_stack("torch/nn/modules/instancenorm.py") or in_stack("torch/nn/modules/batchnorm.py")


def _is_broadcast() -> bool:
    """DistributedDataParallel hands the buffers of rank 0 to all: what another layer wrote there, not a new value."""
    return any(
        frame.f_code.co_name in _BROADCASTS and frame.f_code.co_filename.endswith("torch/nn/parallel/distributed.py")
        for frame in frames(sys._getframe(1))
    )


def _base(name: str) -> str:
    """The operator without its overload."""
    return ".".join(name.split(".")[:2])


def _name(func: Any) -> str:
    """``aten.add_`` for ``aten.add_.Tensor``; overloads that matter keep their names."""
    packet = str(func.overloadpacket) if hasattr(func, "overloadpacket") else str(func)
    overload = getattr(func, "_overloadname", "")
    return f"{packet}.{overload}" if overload in {"no_stats", "out"} else packet


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    declared = list(declared_writes(func, args, kwargs))
    for value in declared:
        yield from _tensors(value)
    hidden = _HIDDEN.get(_name(func)) if not declared else None
    if hidden is not None:
        arguments, switch = hidden
        if len(args) > switch and args[switch]:
            for position in arguments:
                yield from _tensors(args[position])


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [item for item in cast("list[Any]", value) if isinstance(item, Tensor)]
    return []


def frames_compiled() -> int:
    """How many frames this process has compiled so far."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(sum(dynamo.counters.get("frames", {}).values()))


def refusal(*, compiled: bool) -> str:
    """Why operators cannot be looked at now without changing what is computed; empty where they can.

    Under a dispatch mode compiled code runs uncompiled, and inside of ``vmap`` and ``grad`` a mode does not nest.
    """
    if _get_current_dispatch_mode() is not None:
        return "another dispatch mode is active"
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue] - in no stub
    if functorch.peek_interpreter_stack() is not None:
        return "the step runs inside of vmap or grad"
    if compiled:
        return "torch.compile is in use, and a traced step would run uncompiled"
    return ""
