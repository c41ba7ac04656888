"""One run of a model, written down: which module was called when, which operation read what, and what came back.

Below Python, so that functions, branches and skips are seen; with the forward of every module recorded, so that an
operation is known to belong to a call. Knows modules and operations; judges nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from frostline.attach.instance_method import InstanceMethod, install, uninstall
from frostline.audit.writes import declared_writes
from frostline.norms.eager import eagerly
from frostline.norms.untouched import random_state_kept, untouched
from frostline.state.digest import digest_all
from frostline.state.inventory import inventory

# What an operation reads or gives is known by its memory: views share it, and so does what is written in place.
Memory = int


@dataclass
class Call:
    """One call of one module.

    Attributes:
        index: its number in the run.
        path: the module's dotted path; empty for the model itself.
        nth: how often the module had been called before.
        parent: the call that it is part of; -1 for the model itself.
        leaves: what its forward returned, tensors and other values, flat.
        spec: how they were nested.
        training: whether the module was in train mode.
    """

    index: int
    path: str
    nth: int
    parent: int
    training: bool
    leaves: list[Any] = field(default_factory=list[Any])
    spec: TreeSpec | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What names it in another run of the model."""
        return self.path, self.nth

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among what it returned."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: an operation, or the return from a call.
        call: the innermost call at that time, or the one that returned; -1 outside.
        reads: memory that was read.
        gives: memory of the results; of a call, of what it returned.
        writes: memory that was written in place.
        reason: why its result is not a function of the inputs alone, if so.
        scalar: whether Python got a number out of it, which code may branch on.
    """

    kind: Literal["operation", "return"]
    call: int
    reads: tuple[Memory, ...] = ()
    gives: tuple[Memory, ...] = ()
    writes: tuple[Memory, ...] = ()
    reason: str | None = None
    scalar: bool = False


@dataclass
class Trace:
    """One run.

    Attributes:
        calls: in the order in which they began.
        events: in the order in which they ended.
        inputs: memory of each tensor that was passed to the model, to its number among the flat arguments.
        own: memory of each parameter and buffer to its path.
        outputs: what the model returned, flat.
        written: path of each parameter or buffer that the run changed, to the path of its module.
    """

    calls: list[Call] = field(default_factory=list[Call])
    events: list[Event] = field(default_factory=list[Event])
    inputs: dict[Memory, int] = field(default_factory=dict[int, int])
    own: dict[Memory, str] = field(default_factory=dict[int, str])
    outputs: list[Any] = field(default_factory=list[Any])
    written: dict[str, str] = field(default_factory=dict[str, str])


def trace_run(
    root: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    operations: bool = True,
    kept: Collection[tuple[str, int]] | None = None,
) -> Trace:
    """Run a model once as it is trained: in train mode, in which held parts stay in eval. All is put back afterwards.

    Args:
        root: the model, without wrappers.
        args: positional arguments.
        kwargs: keyword arguments.
        operations: whether operations are written down too, or calls alone.
        kept: without operations, the calls whose results are kept, by path and number; of others the shapes are. All
            by default.

    Example:
        >>> trace = trace_run(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), (torch.ones(1, 2),), {})
        >>> [call.path for call in trace.calls], [event.reason for event in trace.events if event.reason]
        (['', '0', '1'], ["'0.weight' trains", "'0.bias' trains"])
    """
    recorder = _Recorder(root, operations=operations, kept=kept)
    with untouched(root) as model, eagerly():
        tensors = inventory(model).tensors if operations else {}
        before = digest_all(tensors)
        # Held modules stay in eval; what a train() of their own does beside flags, it does when they are trained too.
        model.train()
        recorder.know_inputs(tree_leaves((args, dict(kwargs))))
        with recorder:
            recorder.trace.outputs = tree_leaves(model(*args, **kwargs))
        after = digest_all(tensors)
        recorder.trace.written = {p: p.rpartition(".")[0] for p, mark in after.items() if mark != before[p]}
    return recorder.trace


def memory_of(tensor: Tensor) -> Memory:
    """What tells whether two tensors share their values, as long as both live."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and nested tensors have no single storage
        return id(tensor)


@contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """A block that begins with these seeds of torch, NumPy and Python, and leaves their states as they were.

    Example:
        >>> with seeded(1):
        ...     first = torch.rand(1)
        >>> with seeded(1):
        ...     print(torch.equal(first, torch.rand(1)))
        True
    """
    with random_state_kept():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield


class _Recorded(InstanceMethod[nn.Module]):
    """Stands in for the forward of a module: calls it, and tells the recorder."""

    def __init__(self, module: nn.Module, path: str, recorder: _Recorder, inner: Callable[..., Any] | None) -> None:
        super().__init__(module)
        self._path, self._recorder, self._inner = path, recorder, inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        forward = self._inner or type(module).forward.__get__(module)
        call = self._recorder.enter(self._path, module)
        try:
            output = forward(*args, **kwargs)
        finally:
            self._recorder.leave(call)
        self._recorder.returned(call, output)
        return output


class _Recorder(TorchDispatchMode):
    def __init__(self, root: nn.Module, *, operations: bool, kept: Collection[tuple[str, int]] | None) -> None:
        super().__init__()
        self._kept = kept
        self.trace = Trace()
        self._root, self._operations = root, operations
        self._stack: list[int] = []
        self._counts: Counter[str] = Counter()
        self._installed: list[tuple[nn.Module, object | None]] = []
        # Kept until the end, so that no memory is used twice and a number means one storage.
        self._alive: list[Any] = []
        self._trainable: dict[Memory, str] = {}

    def __enter__(self) -> Any:
        for path, tensor in inventory(self._root).tensors.items():
            self.trace.own.setdefault(memory_of(tensor), path)
            if tensor.requires_grad:
                self._trainable.setdefault(memory_of(tensor), path)
        for path, module in self._root.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no attributes; its operations are seen all the same
            own = cast("Callable[..., Any] | None", module.__dict__.get("forward"))
            self._installed.append((module, install(module, "forward", _Recorded(module, path, self, own))))
        return super().__enter__() if self._operations else self

    def __exit__(self, *error: Any) -> None:
        try:
            if self._operations:
                super().__exit__(*error)
        finally:
            for module, before in self._installed:
                uninstall(module, "forward", _Recorded, before)

    def know_inputs(self, leaves: list[Any]) -> None:
        self._alive.append(leaves)
        self.trace.inputs = {memory_of(leaf): n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}

    def enter(self, path: str, module: nn.Module) -> Call:
        parent = self._stack[-1] if self._stack else -1
        call = Call(len(self.trace.calls), path, self._counts[path], parent, module.training)
        self._counts[path] += 1
        self.trace.calls.append(call)
        self._stack.append(call.index)
        return call

    def leave(self, call: Call) -> None:
        assert self._stack.pop() == call.index

    def returned(self, call: Call, output: Any) -> None:
        call.leaves, call.spec = tree_flatten(output)
        if self._operations:
            self._alive.append(call.leaves)
            self.trace.events.append(Event("return", call.index, gives=tuple(map(memory_of, call.tensors))))
        else:
            # A later operation may write into it; with operations on, that is known.
            whole = self._kept is None or call.key in self._kept
            call.leaves = [_copied(leaf, whole=whole) if isinstance(leaf, Tensor) else leaf for leaf in call.leaves]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        draws = torch.Tag.nondeterministic_seeded in func.tags
        before = _generators(read) if draws else None
        result = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._alive.append((read, given))
        reads = tuple(dict.fromkeys(map(memory_of, read)))
        trains = next((self._trainable[each] for each in reads if each in self._trainable), None)
        reason = None
        if trains is not None:
            reason = f"{trains!r} trains"
        elif before is not None and before != _generators(read):
            reason = f"draws random numbers ({str(func).removeprefix('aten.').partition('.')[0]})"
        written = tree_leaves(list(declared_writes(func, args, kwargs)))
        writes = tuple(memory_of(each) for each in written if isinstance(each, Tensor))
        self.trace.events.append(
            Event(
                "operation",
                self._stack[-1] if self._stack else -1,
                reads,
                tuple(map(memory_of, given)),
                writes,
                reason,
                scalar=not given and not writes,
            )
        )
        return result


def _copied(tensor: Tensor, *, whole: bool) -> Tensor:
    """A copy of a tensor, or one of its shape and type without memory."""
    return tensor.detach().clone() if whole else torch.empty_like(tensor, device="meta")


def _generators(tensors: list[Tensor]) -> list[bytes]:
    """The states of the generators that an operation on these tensors could draw from."""
    states = [torch.default_generator.get_state()]
    states += [torch.cuda.get_rng_state(t.device) for t in tensors if t.device.type == "cuda"]
    return [state.numpy().tobytes() for state in states]
