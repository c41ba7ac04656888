"""Where a model is cut in two: what is computed once for a sample, and what is run every time.

Found by running the model on example inputs, several times: what trains or draws random numbers is seen in one run;
what depends on the other samples of the batch, or differs from run to run, by comparing runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from frostline.errors import FastError
from frostline.fast.features import Place
from frostline.fast.purity import Key, Purity, follow, judge
from frostline.fast.tracing import Call, Memory, memory_of, seeded, trace_run
from frostline.norms.layers import statistics_of
from frostline.state.digest import digest

# Rounding alone may tell rows of different batches apart; a batch statistic moves them by far more.
_ROUNDING = 1e-4
SAMPLES = 2
_ALONE = (1, 1)
_MIXED = (0, 1, 1, 0)


@dataclass(frozen=True)
class Blocked:
    """Why a part of the model is not in the prefix.

    Attributes:
        path: the module in which the reason arises.
        reason: in words.
    """

    path: str
    reason: str

    @property
    def trains(self) -> bool:
        """Whether the reason is a parameter that trains."""
        return self.reason.endswith("' trains")

    def __str__(self) -> str:
        return f"{self.path or '(the model)'}: {self.reason}"


@dataclass(frozen=True)
class Shape:
    """The shape of a tensor for any number of samples: ``fixed + samples * each``, dimension by dimension.

    Attributes:
        fixed: the part that does not depend on their number.
        each: what each sample adds.
        dtype: the tensor's type.
        written: whether the model writes into it, so that it needs memory of its own.
    """

    fixed: tuple[int, ...]
    each: tuple[int, ...]
    dtype: torch.dtype
    written: bool = False

    @property
    def by_sample(self) -> bool:
        """Whether the first dimension is the sample, and no other depends on their number."""
        return bool(self.each) and (self.fixed[0], self.each[0]) == (0, 1) and not any(self.each[1:])

    @property
    def constant(self) -> bool:
        """Whether it does not depend on the number of samples."""
        return not any(self.each)

    def at(self, samples: int) -> tuple[int, ...]:
        """The shape for so many samples."""
        return tuple(fixed + samples * each for fixed, each in zip(self.fixed, self.each, strict=True))

    @staticmethod
    def of(one: Tensor, two: Tensor, samples: int) -> Shape | None:
        """From a tensor for so many samples and one for twice as many."""
        pairs = list(zip(one.shape, two.shape, strict=False))
        if one.ndim != two.ndim or one.dtype != two.dtype or any((b - a) % samples for a, b in pairs):
            return None
        each = tuple((b - a) // samples for a, b in pairs)
        return Shape(tuple(2 * a - b for a, b in pairs), each, one.dtype)


@dataclass(frozen=True)
class Source:
    """Where a tensor that crosses the boundary comes from.

    Attributes:
        call: the call that returns it; nothing for an argument of the model.
        leaf: its number among what that call returns, or among the arguments, flat.
    """

    call: Key | None
    leaf: int


@dataclass(frozen=True)
class Returned:
    """What a call returns.

    Attributes:
        leaves: a :class:`Shape` for each tensor that is not kept here, the value of anything else.
        spec: how they are nested.
        inside: how often each module is called within.
    """

    leaves: tuple[Any, ...]
    spec: TreeSpec
    inside: Mapping[str, int]


@dataclass(frozen=True)
class Cut:
    """A model in two parts.

    Attributes:
        places: what crosses the boundary.
        sources: where each of them comes from.
        given: the calls whose results cross the boundary, in the order of the run.
        skipped: the other outermost calls of the prefix, whose results only the prefix reads.
        hollow: calls in which nothing of the prefix is.
        written: the numbers of the places that the rest writes into.
        entries: paths of the parameters and buffers that the prefix reads.
        training: path of each module of the prefix to its mode.
        modules: paths of the outermost modules of the prefix, in the order of the run.
        blocked: why the rest is not in it, in the order of the run.
        arguments: a :class:`Shape` for each argument that holds samples, the value of any other; flat.
        spec: how the arguments are nested.
    """

    places: tuple[Place, ...]
    sources: tuple[Source, ...]
    given: Mapping[Key, Returned]
    skipped: Mapping[Key, Returned]
    hollow: Mapping[Key, Returned]
    written: frozenset[int]
    entries: tuple[str, ...]
    training: Mapping[str, bool]
    modules: tuple[str, ...]
    blocked: tuple[Blocked, ...]
    arguments: tuple[Any, ...]
    spec: TreeSpec

    def made_up(self, samples: int, device: torch.device) -> list[Any]:
        """Flat arguments for so many samples of any numbers, always the same."""
        generator = torch.Generator().manual_seed(0)

        def numbers(shape: Shape) -> Tensor:
            if shape.dtype.is_floating_point:
                return torch.randn(shape.at(samples), generator=generator).to(device, shape.dtype)
            # Those that any vocabulary has.
            return torch.randint(2, shape.at(samples), generator=generator).to(device, shape.dtype)

        return [numbers(leaf) if isinstance(leaf, Shape) else leaf for leaf in self.arguments]


def find_cut(root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Cut:
    """Find the longest frozen prefix of a model. The model is run a few times, and is as before afterwards.

    Args:
        root: the model, without wrappers.
        args: positional arguments for two samples or more; tensors whose first dimension is theirs hold samples.
        kwargs: keyword arguments.

    Raises:
        FastError: there are fewer than two samples.
    """
    examples = _Examples(args, kwargs)
    with seeded(0):
        trace = trace_run(root, *examples.chosen(range(SAMPLES)))
    forced: dict[Key, str] = {}
    for name, path in trace.written.items():
        mode = ", being in train mode" if statistics_of(root.get_submodule(path)) is not None else ""
        forced |= {call.key: f"writes {name!r} in its forward{mode}" for call in trace.calls if call.path == path}
    purity = judge(trace, forced)
    runs = _Runs(root, examples)
    while True:
        found = runs.contradiction(purity)
        drawing = _Drawing(purity, runs, forced)
        found = found or drawing.misfits()
        if not found:
            return drawing.cut()
        forced |= found
        purity = judge(trace, forced)


class _Examples:
    """The arguments of a model, for two samples and in other company."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.leaves, self.spec = tree_flatten((args, dict(kwargs)))
        sizes = [leaf.shape[0] for leaf in self.leaves if isinstance(leaf, Tensor) and leaf.ndim]
        self.given = sizes[0] if sizes else 0
        if self.given < SAMPLES:
            raise FastError(
                f"plan: the example inputs hold {self.given} samples. What a model does to a sample may depend on the "
                "others of its batch, which one alone does not show.\n  fix: inputs with two samples or more, the "
                "first dimension of each tensor"
            )

    def chosen(self, rows: Sequence[int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with these samples."""
        leaves = [leaf.detach()[list(rows)] if self.is_batch(leaf) else leaf for leaf in self.leaves]
        positional, named = tree_unflatten(leaves, self.spec)
        return positional, named

    def is_batch(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == self.given

    def shape(self, leaf: Any, *, written: bool) -> Any:
        """The shape of an argument that holds samples, for any number of them; any other argument as it is."""
        if not self.is_batch(leaf):
            return leaf
        rest = tuple(leaf.shape[1:])
        return Shape((0, *rest), (1, *(0 for _ in rest)), leaf.dtype, written)

    def name(self, number: int) -> str:
        """What an argument is called, by its number."""
        positional, named = tree_unflatten(range(len(self.leaves)), self.spec)
        for name, value in [*enumerate(positional), *named.items()]:
            inner = tree_leaves(value)
            if number in inner:
                return f"input:{name}" + (f"[{inner.index(number)}]" if len(inner) > 1 else "")
        raise KeyError(number)


class _Runs:
    """Further runs, in which calls that were thought to be pure have to give a sample what they gave it before.

    One run has the second sample twice, the other both samples twice, under another seed: so the second sample meets
    others, stands at other places, and finds another random state. Only if something differs, a third run tells why.
    """

    def __init__(self, root: nn.Module, examples: _Examples) -> None:
        self.root, self.examples = root, examples
        self._once: dict[Key, Call] = {}
        self._twice: dict[Key, Call] = {}
        self._kept: set[Key] = set()

    def keep(self, keys: set[Key]) -> None:
        """Run, and keep what these calls return; of all others the shapes."""
        if not keys <= self._kept or not self._once:
            self._kept |= keys
            self._once = self._run(_ALONE, 0)
            self._twice = self._run(_MIXED, 1)

    def once(self, key: Key) -> Call | None:
        """A call for two samples."""
        return self._once.get(key)

    def twice(self, key: Key) -> Call | None:
        """A call for four."""
        return self._twice.get(key)

    def _run(self, rows: tuple[int, ...], seed: int) -> dict[Key, Call]:
        with seeded(seed):
            trace = trace_run(self.root, *self.examples.chosen(rows), operations=False, kept=self._kept)
        return {call.key: call for call in trace.calls}

    def contradiction(self, purity: Purity) -> dict[Key, str]:
        """The innermost call that was thought to be pure and is not, with the reason."""
        tops = {call.index for call in purity.tops()}
        self.keep({purity.trace.calls[index].key for index in tops})
        wrong = [index for index in sorted(tops) if self._why_not(purity.trace.calls[index].key) is not None]
        if not wrong:
            return {}
        inside = [call for call in purity.pure() if purity.outermost[call.index] == wrong[0]]
        self.keep({call.key for call in inside})
        indices = {call.index for call in inside}
        for event in purity.trace.events:  # in the order in which they return, so the innermost first
            if event.kind == "return" and event.call in indices:
                key = purity.trace.calls[event.call].key
                if (why := self._why_not(key)) is not None:
                    return {key: why}
        return {}

    def _why_not(self, key: Key) -> str | None:
        once, twice = self._once.get(key), self._twice.get(key)
        if once is None or twice is None or len(once.leaves) != len(twice.leaves):
            return "is not called alike in every run"
        for one, two in zip(once.leaves, twice.leaves, strict=True):
            if not isinstance(one, Tensor) or not isinstance(two, Tensor):
                if one is not two and (isinstance(one, Tensor) or isinstance(two, Tensor) or one != two):
                    return "returns a value that is no tensor and changes"
                continue
            shape = Shape.of(one, two, len(_ALONE))
            if shape is None:
                return "returns shapes that do not follow the number of samples"
            # The second sample, alone with itself and among the others; the first at both of its places.
            first, second = [place for place, row in enumerate(_MIXED) if row == 0], _MIXED.index(1)
            if shape.by_sample and not (_close(two[[second, second]], one) and _close(two[first[:1]], two[first[1:]])):
                return self._why_it_differs(key)
            if shape.constant and not _close(one, two):
                return self._why_it_differs(key)
        return None

    def _why_it_differs(self, key: Key) -> str:
        again = self._run(_ALONE, 1).get(key)
        once = self._once[key]
        if again is None or any(
            isinstance(one, Tensor) and not _equal(one, other)
            for one, other in zip(once.leaves, again.leaves, strict=False)
        ):
            return "gives different results for the same input: it draws random numbers, or keeps a state"
        use = statistics_of(self.root.get_submodule(key[0]))
        if use is not None and use.uses == "batch":
            return "normalizes with the batch: it keeps no statistics, or is in train mode"
        return "gives a sample another result when the others of its batch are others"


class _Drawing:
    """Draws the line: follows what is pure to where something outside the prefix reads it."""

    def __init__(self, purity: Purity, runs: _Runs, forced: Mapping[Key, str]) -> None:
        self.purity, self.runs, self.trace = purity, runs, purity.trace
        self.calls = {call.key: call for call in self.trace.calls}
        self.read: dict[int, set[Memory]] = {}
        self.needed: set[Source] = set()
        self.written: set[Source] = set()
        self._follow(forced)

    def misfits(self) -> dict[Key, str]:
        """Calls whose results cross the boundary, and cannot be kept by sample."""
        return {
            source.call: f"returns a tensor of shape {shape.at(SAMPLES)}, whose first dimension is not the sample"
            for source in self._ordered()
            if source.call is not None
            and not (shape := self._shape(self.calls[source.call], source.leaf)).by_sample
            and not shape.constant
        }

    def cut(self) -> Cut:
        sources = [source for source in self._ordered() if self._crosses(source)]
        given = {source.call for source in self._ordered() if source.call is not None}
        tops = self.purity.tops()
        inside = self._inside()
        return Cut(
            places=tuple(map(self._place, sources)),
            sources=tuple(sources),
            given={call.key: self._returned(call, inside) for call in tops if call.key in given},
            skipped={call.key: self._returned(call, inside) for call in tops if call.key not in given},
            hollow={call.key: self._returned(call, inside) for call in self._hollow(given)},
            written=frozenset(number for number, source in enumerate(sources) if source in self.written),
            entries=self._entries(given),
            training={call.path: call.training for call in self.purity.pure()},
            modules=tuple(dict.fromkeys(call.path for call in tops)),
            blocked=self._blocked(),
            arguments=tuple(
                self.runs.examples.shape(leaf, written=Source(None, number) in self.written)
                for number, leaf in enumerate(self.runs.examples.leaves)
            ),
            spec=self.runs.examples.spec,
        )

    def _follow(self, forced: Mapping[Key, str]) -> None:
        """Where each untainted memory comes from, and which of it something outside the prefix reads."""
        nothing: frozenset[Source] = frozenset()
        comes = {memory: frozenset({Source(None, number)}) for memory, number in self.trace.inputs.items()}
        for event, reason in follow(self.trace, forced):
            top = self.purity.outermost.get(event.call)
            if event.kind == "return":
                if top == event.call:
                    call = self.trace.calls[event.call]
                    places = [number for number, leaf in enumerate(call.leaves) if isinstance(leaf, Tensor)]
                    for number, memory in zip(places, event.gives, strict=True):
                        comes[memory] = frozenset({Source(call.key, number)})
                continue
            if reason is None:
                self.read.setdefault(event.call, set()).update(event.reads)
            if top is not None:
                continue
            read = nothing.union(*(comes.get(memory, nothing) for memory in event.reads))
            self.written |= nothing.union(*(comes.get(memory, nothing) for memory in event.writes))
            if reason is not None or event.scalar:
                self.needed |= read
            for memory in (*event.gives, *event.writes):
                if reason is None:
                    comes[memory] = comes.get(memory, nothing) | read
                else:
                    comes.pop(memory, None)
        for leaf in self.trace.outputs:
            if isinstance(leaf, Tensor):
                self.needed |= comes.get(memory_of(leaf), nothing)

    def _ordered(self) -> list[Source]:
        def order(source: Source) -> tuple[int, int]:
            return (len(self.calls) if source.call is None else self.calls[source.call].index, source.leaf)

        return sorted(self.needed, key=order)

    def _crosses(self, source: Source) -> bool:
        """Whether it depends on the samples; what does not is kept in the cut, or passed as it is."""
        if source.call is None:
            return self.runs.examples.is_batch(self.runs.examples.leaves[source.leaf])
        return self._shape(self.calls[source.call], source.leaf).by_sample

    def _place(self, source: Source) -> Place:
        if source.call is None:
            leaf: Tensor = self.runs.examples.leaves[source.leaf]
            return Place(self.runs.examples.name(source.leaf), tuple(leaf.shape[1:]), leaf.dtype)
        call = self.calls[source.call]
        shape = self._shape(call, source.leaf)
        again = f" (call {call.nth + 1})" if call.nth else ""
        several = f"[{source.leaf}]" if len(call.tensors) > 1 else ""
        return Place(f"{call.path or '(model)'}{several}{again}", shape.fixed[1:], shape.dtype)

    def _shape(self, call: Call, number: int) -> Shape:
        one, other = call.leaves[number], self.runs.twice(call.key)
        two = other.leaves[number] if other is not None and number < len(other.leaves) else one
        shape = Shape.of(one, two, SAMPLES) if isinstance(two, Tensor) else None
        return shape or Shape(tuple(one.shape), (0,) * one.ndim, one.dtype)

    def _returned(self, call: Call, inside: Mapping[int, Counter[str]]) -> Returned:
        assert call.spec is not None
        leaves: list[Any] = []
        for number, leaf in enumerate(call.leaves):
            if not isinstance(leaf, Tensor):
                leaves.append(leaf)
                continue
            shape = replace(self._shape(call, number), written=Source(call.key, number) in self.written)
            real = self.runs.once(call.key) if Source(call.key, number) in self.needed else None
            leaves.append(shape if real is None or not shape.constant else real.leaves[number])
        return Returned(tuple(leaves), call.spec, inside.get(call.index, Counter()))

    def _inside(self) -> dict[int, Counter[str]]:
        """For each call how often each module is called within it."""
        found: dict[int, Counter[str]] = {}
        for call in self.trace.calls:
            above = call.parent
            while above >= 0:
                found.setdefault(above, Counter())[call.path] += 1
                above = self.trace.calls[above].parent
        return found

    def _around(self, given: set[Key]) -> set[int]:
        """The calls in which something is that crosses the boundary."""
        around: set[int] = set()
        for key in given:
            above = self.calls[key].parent
            while above >= 0:
                around.add(above)
                above = self.trace.calls[above].parent
        return around

    def _entries(self, given: set[Key]) -> tuple[str, ...]:
        """What the prefix reads, in its calls and between them."""
        between = {-1, *self._around(given)}
        read = {
            m for call, every in self.read.items() if call in self.purity.outermost or call in between for m in every
        }
        return tuple(sorted(self.trace.own[memory] for memory in read if memory in self.trace.own))

    def _hollow(self, given: set[Key]) -> list[Call]:
        """The outermost calls that are not pure and in which nothing is that crosses the boundary."""
        around = self._around(given)
        return [
            call
            for call in self.trace.calls
            if call.index in self.purity.reasons and call.index not in around and call.parent in around
        ]

    def _blocked(self) -> tuple[Blocked, ...]:
        first = self.purity.first
        return tuple(Blocked(call.path, first[call.index]) for call in self.trace.calls if call.index in first)


def _equal(one: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and one.shape == other.shape and digest(one) == digest(other)


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ by no more than rounding, measured by the largest number in them."""
    if torch.equal(one, other):
        return True
    if one.shape != other.shape or not (one.is_floating_point() or one.is_complex()):
        return False
    size = float(one.abs().nan_to_num().max())
    return torch.allclose(one, other, rtol=0.0, atol=_ROUNDING * size, equal_nan=True)
