"""Runs one of the two parts of a model that was cut: the prefix, or the rest on features.

The model runs its own forward both times. In the prefix, calls in which nothing of the prefix is return empty tensors,
and the run ends with the last call that is wanted; in the rest, calls of the prefix return the features, or empty
tensors where only the prefix reads them. For the length of a run, methods lie in the ``__dict__`` of the modules
concerned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from frostline.attach.instance_method import InstanceMethod, install, uninstall
from frostline.errors import FastError
from frostline.fast.cut import Cut, Returned, Shape
from frostline.fast.features import Features
from frostline.fast.purity import Key


def run_prefix(root: nn.Module, cut: Cut, leaves: Sequence[Any]) -> Features:
    """The features of a batch. The caller sees to modes, gradients and random states.

    Args:
        root: the model, or a copy of it.
        cut: where it is cut.
        leaves: the model's arguments, flat.
    """
    run = _PrefixRun(cut, leaves)
    args, kwargs = tree_unflatten(list(leaves), cut.spec)
    with _installed(root, run, {*cut.given, *cut.hollow}), suppress(_Done):
        root(*args, **kwargs)
    return run.features()


def run_rest(root: nn.Module, cut: Cut, features: Features, through: Callable[..., Any] | None = None) -> Any:
    """What the model returns for features, with the graph of what trains.

    Args:
        root: the model.
        cut: where it is cut.
        features: for each place of the cut a tensor, the first dimension of which is the sample.
        through: what is called in place of the model: a wrapper of it, such as ``DistributedDataParallel``.
    """
    run = _RestRun(cut, features)
    args, kwargs = run.arguments()
    with _installed(root, run, {*cut.given, *cut.skipped}):
        return (root if through is None else through)(*args, **kwargs)


class _Done(BaseException):
    """All that is wanted has been computed. No error, so that no handler of the model's own catches it."""


class _Run(ABC):
    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self.counts: Counter[str] = Counter()

    def called(self, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        key = path, self.counts[path]
        self.counts[path] += 1
        return self.replaced(key, forward, args, kwargs)

    @abstractmethod
    def replaced(self, key: Key, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What a call returns in this run."""


class _PrefixRun(_Run):
    def __init__(self, cut: Cut, leaves: Sequence[Any]) -> None:
        super().__init__(cut)
        self.leaves = leaves
        self.samples, self.device = _batch_of(cut, leaves)
        self.captured: dict[Key, list[Any]] = {}

    def replaced(self, key: Key, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if (returned := self.cut.hollow.get(key)) is not None:
            self.counts.update(returned.inside)
            return _empty(returned, self.samples, self.device)
        output = forward(*args, **kwargs)
        if key in self.cut.given:
            self.captured[key] = tree_flatten(output)[0]
            # What comes later could write into it.
            if len(self.captured) == len(self.cut.given):
                raise _Done
            self.captured[key] = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in self.captured[key]]
        return output

    def features(self) -> Features:
        missing = [path for path, _ in self.cut.given.keys() - self.captured.keys()]
        if missing:
            raise FastError(
                f"the model took another way than when it was cut: {missing[0]!r} was not called\n"
                "  fix: plan anew, with inputs of the kind that it is given now"
            )
        return tuple(
            self.leaves[source.leaf] if source.call is None else self.captured[source.call][source.leaf]
            for source in self.cut.sources
        )


class _RestRun(_Run):
    def __init__(self, cut: Cut, features: Features) -> None:
        super().__init__(cut)
        if len(features) != len(cut.places):
            raise FastError(
                f"rest: {len(features)} tensors of features, expected {len(cut.places)}: "
                f"{', '.join(map(str, cut.places))}\n  fix: what the prefix returns, as it is"
            )
        for place, feature in zip(cut.places, features, strict=True):
            if tuple(feature.shape[1:]) != place.shape:
                raise FastError(
                    f"rest: features of shape {tuple(feature.shape)} for {place.name}\n"
                    f"  expected: (N, {', '.join(map(str, place.shape))})\n  fix: what the prefix returns, as it is"
                )
        self.samples, self.device = len(features[0]), features[0].device
        # A cached feature must not be changed by what reads it.
        kept = [each.clone() if number in cut.written else each for number, each in enumerate(features)]
        self.by_source = dict(zip(cut.sources, kept, strict=True))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the model: features where they are wanted, empty tensors where only the prefix reads."""
        given = {source.leaf: value for source, value in self.by_source.items() if source.call is None}
        leaves = [
            given[number]
            if number in given
            else _hollow_tensor(leaf, self.samples, self.device)
            if isinstance(leaf, Shape)
            else leaf
            for number, leaf in enumerate(self.cut.arguments)
        ]
        args, kwargs = tree_unflatten(leaves, self.cut.spec)
        return args, kwargs

    def replaced(self, key: Key, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if (returned := self.cut.given.get(key)) is not None:
            self.counts.update(returned.inside)
            own = {source.leaf: value for source, value in self.by_source.items() if source.call == key}
            return _empty(returned, self.samples, self.device, own)
        if (returned := self.cut.skipped.get(key)) is not None:
            self.counts.update(returned.inside)
            return _empty(returned, self.samples, self.device)
        return forward(*args, **kwargs)


class _Forward(InstanceMethod[nn.Module]):
    """Stands in for the forward of a module during a run."""

    def __init__(self, module: nn.Module, path: str, run: _Run, inner: Callable[..., Any] | None) -> None:
        super().__init__(module)
        self._path, self._run, self._inner = path, run, inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        return self._run.called(self._path, self._inner or type(module).forward.__get__(module), args, kwargs)


@contextmanager
def _installed(root: nn.Module, run: _Run, keys: set[Key]) -> Generator[None, None, None]:
    # Calls of a module are counted, so that the right one of several is met.
    undo: list[tuple[nn.Module, object | None]] = []
    try:
        for path in {path for path, _ in keys}:
            module = root.get_submodule(path)
            own = cast("Callable[..., Any] | None", module.__dict__.get("forward"))
            undo.append((module, install(module, "forward", _Forward(module, path, run, own))))
        yield
    finally:
        for module, before in undo:
            uninstall(module, "forward", _Forward, before)


def _batch_of(cut: Cut, leaves: Sequence[Any]) -> tuple[int, torch.device]:
    for shape, leaf in zip(cut.arguments, leaves, strict=True):
        if isinstance(shape, Shape):
            return len(leaf), leaf.device
    raise FastError("no argument holds samples")


def _empty(returned: Returned, samples: int, device: torch.device, given: Mapping[int, Tensor] | None = None) -> Any:
    """What a call returns, with empty tensors for all that is not given."""
    leaves: list[Any] = []
    for number, leaf in enumerate(returned.leaves):
        if given is not None and number in given:
            leaves.append(given[number])
        else:
            leaves.append(_hollow_tensor(leaf, samples, device) if isinstance(leaf, Shape) else leaf)
    return tree_unflatten(leaves, returned.spec)


def _hollow_tensor(shape: Shape, samples: int, device: torch.device) -> Tensor:
    """Zeros of a shape, from which nothing is read that counts; they take no memory unless they are written into."""
    if shape.written:
        return torch.zeros(shape.at(samples), dtype=shape.dtype, device=device)
    return torch.zeros((), dtype=shape.dtype, device=device).expand(shape.at(samples))
