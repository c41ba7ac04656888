"""Where the input of each normalization layer comes from, and whether it goes anywhere else: found by running.

Every operation of one forward pass is looked at, below Python: which of them reads the memory of a convolution's output
or of its weight. So a use by a function, by a scripted part or through a view is not missed.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from frostline.norms.convert.wiring import Source
from frostline.norms.eager import eagerly
from frostline.norms.untouched import untouched
from frostline.state.arguments import arguments_of


def watched_sources(root: nn.Module, layers: Mapping[str, nn.Module], inputs: Any) -> dict[str, Source]:
    """What feeds each of these layers, in one forward pass in eval mode. The model is as before afterwards.

    Args:
        root: the model.
        layers: by path.
        inputs: a tensor, a tuple of arguments or a mapping of keyword arguments.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.BatchNorm1d(2))
        >>> sources = watched_sources(model, {"1": model[1], "3": model[3]}, torch.zeros(1, 2))
        >>> sources["1"].path, sources["3"].why_not
        ('0', 'it does not follow a convolution or linear layer directly')
    """
    linear = {path: m for path, m in root.named_modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))}
    watch = _Watch(linear, layers)
    handles = watch.hook()
    try:
        with untouched(root):
            result = _run(root, inputs, watch)
    finally:
        for handle in handles:
            handle.remove()
    kept = watch.still_kept(result)
    del result
    return {path: watch.source(path, kept) for path in layers}


def _run(root: nn.Module, inputs: Any, watch: _Watch) -> Any:
    with eagerly(), watch:
        args, kwargs = arguments_of(inputs)
        return root(*args, **kwargs)


class _Watch(TorchDispatchMode):
    """Notes who reads the outputs and parameters of linear layers.

    Outputs are kept until the end, so that no memory is used twice and an address means one tensor.
    """

    def __init__(self, linear: Mapping[str, nn.Module], layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._linear, self._layers = linear, layers
        self._calls: Counter[str] = Counter()
        self._active: list[str] = []
        self._outputs: dict[str, Tensor] = {}
        self._by_memory: dict[int, str] = {}
        self._readers: dict[str, set[str]] = {}
        self._ndim: dict[str, int] = {}
        self._fed_by: dict[str, str] = {}
        self._own: dict[int, str] = {}
        self._shared: set[str] = set()
        for path, module in {**linear, **layers}.items():
            for tensor in module.parameters(recurse=False):
                self._own[_memory(tensor)] = path

    def hook(self) -> list[Any]:
        """Note when a linear layer or one of the layers runs."""
        handles: list[Any] = []
        for path, module in {**self._linear, **self._layers}.items():
            handles.append(module.register_forward_pre_hook(partial(self._before, path)))
            handles.append(module.register_forward_hook(partial(self._after, path)))
        return handles

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reader = self._active[-1] if self._active else ""
        for value in tree_leaves((args, kwargs)):
            if not isinstance(value, Tensor):
                continue
            memory = _memory(value)
            if (producer := self._by_memory.get(memory)) is not None:
                self._readers.setdefault(producer, set()).add(reader)
            if (owner := self._own.get(memory)) is not None and owner != reader:
                self._shared.add(owner)
        return func(*args, **(kwargs or {}))

    def still_kept(self, result: Any) -> set[str]:
        """The linear layers whose output something else than we keeps alive: returned, or stored somewhere.

        Args:
            result: what the model returned.
        """
        returned = {id(leaf) for leaf in tree_leaves(result)}
        kept = {path for path, output in self._outputs.items() if id(output) in returned}
        alive = {path: weakref.ref(output) for path, output in self._outputs.items() if path not in kept}
        self._outputs = {}
        # A second of work in a large process: only if there is something that it could free.
        if any(each() is not None for each in alive.values()):
            gc.collect()
        return kept | {path for path, each in alive.items() if each() is not None}

    def source(self, path: str, kept: set[str]) -> Source:
        """What feeds this layer."""
        if not self._calls[path]:
            return Source(why_not="these inputs do not reach it")
        if self._calls[path] > 1:
            return Source(why_not="it is called more than once")
        producer = self._fed_by.get(path)
        if producer is None:
            return Source(why_not="it does not follow a convolution or linear layer directly")
        name = f"{producer!r} ({type(self._linear[producer]).__name__})"
        if self._calls[producer] > 1:
            return Source(why_not=f"{name}, which it follows, is called more than once")
        if self._readers.get(producer) != {path} or producer in kept:
            return Source(why_not=f"the output of {name} goes elsewhere too")
        if producer in self._shared or path in self._shared:
            return Source(why_not=f"a forward reads the parameters of {name} or its own")
        return Source(producer, ndim=self._ndim[producer])

    def _before(self, path: str, _module: nn.Module, args: Any) -> None:
        self._calls[path] += 1
        self._active.append(path)
        value = args[0] if args else None
        fed = [p for p, output in self._outputs.items() if output is value]
        if path in self._layers and fed:
            self._fed_by[path] = fed[0]

    def _after(self, path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        self._active.pop()
        if path in self._linear and isinstance(output, Tensor):
            self._outputs[path] = output
            self._by_memory[_memory(output)] = path
            self._ndim[path] = output.ndim


def _memory(tensor: Tensor) -> int:
    # The storage itself: tensors of one storage share it whatever their offset, and an empty one has no address.
    return tensor.untyped_storage()._cdata
