"""Few and named ways to make a tensor fit that has another shape, each asked for by name and said in the plan.

An adapter looks at two shapes and says which operation leads from one to the other, or that it knows none. Nothing is
adapted unasked: that a shape can be made to fit does not mean that it should be.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from frostline.checkpoint.operations import Operation
from frostline.errors import CheckpointError, name_some

Shape: TypeAlias = tuple[int, ...]


class Adapter(ABC):
    """A way to make one shape fit another."""

    @abstractmethod
    def fit(self, source: Shape, target: Shape) -> Operation | None:
        """The operation that leads from one to the other; nothing if there is none."""

    @property
    def fits_equal_shapes(self) -> bool:
        """Whether it also has to do with tensors whose shapes agree."""
        return False


@dataclass(frozen=True)
class InputChannels(Adapter):
    """A convolution for images of other channels: three to one are added up, else repeated and scaled.

    To one channel or to a multiple of what there was, the output for an image that repeats its channels stays what it
    was, up to rounding; to any other number, only the size of the weights does.

    Example:
        >>> print(InputChannels().fit((64, 3, 7, 7), (64, 1, 7, 7)))
        input-channels(to=1)
    """

    def fit(self, source: Shape, target: Shape) -> Operation | None:
        """See :class:`Adapter`."""
        if len(source) < 3 or len(source) != len(target) or source[1] == target[1]:
            return None
        same = source[0] == target[0] and source[2:] == target[2:]
        return Operation("input-channels", {"to": target[1]}) if same else None


@dataclass(frozen=True)
class PositionEmbedding(Adapter):
    """Position embeddings for another number of patches, (1, N, D) or (N, D): the grid is resized, bicubic, smoothed.

    Attributes:
        prefix_tokens: how many tokens in front have no place in the grid (class token, registers). ``None`` takes the
            number from 0 to 8 for which both sides leave a square; no two of them do.

    Example:
        >>> print(PositionEmbedding().fit((1, 197, 768), (1, 577, 768)))
        position-embedding(prefix=1)

    Source:
        Dosovitskiy et al. 2021 (arXiv 2010.11929), section 3.2; squares are tested exactly, because a remainder
        takes 196 = 14 x 14 for 195 patches and one class token.
    """

    prefix_tokens: int | None = None

    def fit(self, source: Shape, target: Shape) -> Operation | None:
        """See :class:`Adapter`."""
        two = len(source) == 2
        if len(source) != len(target) or len(source) not in {2, 3} or source[-1] != target[-1]:
            return None
        if source[-2] == target[-2] or not (two or source[0] == target[0] == 1):
            return None
        wanted = range(9) if self.prefix_tokens is None else [self.prefix_tokens]
        found = next((n for n in wanted if _is_square(source[-2] - n) and _is_square(target[-2] - n)), None)
        if found is None:
            return None
        grid, to = ([math.isqrt(side[-2] - found)] * 2 for side in (source, target))
        return Operation("position-embedding", {"prefix": found, "grid": grid, "to": to})


@dataclass(frozen=True)
class ConvLinear(Adapter):
    """A 1x1 convolution as a linear layer, and the other way round: (O, I, 1, 1) and (O, I).

    Example:
        >>> print(ConvLinear().fit((10, 64, 1, 1), (10, 64)))
        conv-linear()
    """

    def fit(self, source: Shape, target: Shape) -> Operation | None:
        """See :class:`Adapter`."""
        short, long = sorted((source, target), key=len)
        fits = len(short) == 2 and len(long) > 2 and long == (*short, *([1] * (len(long) - 2)))
        return Operation("conv-linear", {"to": list(target)}) if fits else None


@dataclass(frozen=True)
class Scalar(Adapter):
    """One number as (1,) or as (), as files of torch 0.3 have it.

    Example:
        >>> print(Scalar().fit((1,), ()))
        scalar()
    """

    def fit(self, source: Shape, target: Shape) -> Operation | None:
        """See :class:`Adapter`."""
        return Operation("scalar", {"to": list(target)}) if {source, target} == {(), (1,)} else None


@dataclass(frozen=True)
class Narrow(Adapter):
    """Takes a coarser type although values are rounded by it."""

    def fit(self, source: Shape, target: Shape) -> Operation | None:  # noqa: ARG002 - types are not shapes
        """Never: it changes no shape."""
        return None


@dataclass(frozen=True)
class ClassRows(Adapter):
    """The rows of a classifier by the names of its classes, never by their numbers.

    Classes that both sides know take the checkpoint's rows; the model's own rows stay where the checkpoint knows none.

    Attributes:
        source: names of the classes in the checkpoint, in the order of its rows.
        target: names of the classes in the model, likewise.
        groups: rows are ``group * len(classes) + class`` (detectors with several anchors).

    Example:
        >>> rows = ClassRows(["person", "car"], ["polyp", "car", "person"])
        >>> rows.fit((2, 64), (3, 64)).arguments["rows"]
        [[1, 1], [2, 0]]
    """

    source: Sequence[str]
    target: Sequence[str]
    groups: int = 1

    def __post_init__(self) -> None:
        for side in (self.source, self.target):
            twice = sorted({name for name in side if side.count(name) > 1})
            if twice:
                raise CheckpointError(f"ClassRows: {name_some(twice)} are named twice\n  fix: one name for each class")
        if not set(self.source) & set(self.target):
            raise CheckpointError(
                "ClassRows: the two sides have no class in common\n"
                f"  checkpoint: {name_some(self.source)}\n  model: {name_some(self.target)}\n"
                "  fix: keep= the classifier as it is"
            )

    @property
    def fits_equal_shapes(self) -> bool:
        """As many classes are not yet the same classes."""
        return True

    def fit(self, source: Shape, target: Shape) -> Operation | None:
        """See :class:`Adapter`."""
        old, new = len(self.source), len(self.target)
        if not source or not target or source[1:] != target[1:]:
            return None
        if source[0] != old * self.groups or target[0] != new * self.groups:
            return None
        number = {name: index for index, name in enumerate(self.source)}
        rows = [
            [group * new + index, group * old + number[name]]
            for group in range(self.groups)
            for index, name in enumerate(self.target)
            if name in number
        ]
        return Operation("class-rows", {"rows": rows, "of": target[0]})


NAMED: Mapping[str, Adapter] = {
    "input-channels": InputChannels(),
    "position-embedding": PositionEmbedding(),
    "conv-linear": ConvLinear(),
    "scalar": Scalar(),
    "narrow": Narrow(),
}
Adapt: TypeAlias = "str | Adapter | Iterable[str | Adapter] | Mapping[str, str | Adapter]"


def read_adapt(adapt: Adapt) -> list[tuple[str, Adapter]]:
    """Adapters in any of the forms in which they may be given, as pairs of a pattern on target names and an adapter.

    Raises:
        CheckpointError: a name is not known, or class rows are asked for without saying where.

    Example:
        >>> read_adapt("input-channels")
        [('*', InputChannels())]
    """
    if isinstance(adapt, (str, Adapter)):
        adapt = (adapt,)
    pairs: Any = adapt.items() if isinstance(adapt, Mapping) else [(_everywhere(each), each) for each in adapt]
    found: list[tuple[str, Adapter]] = []
    for pattern, given in cast("list[tuple[str, str | Adapter]]", list(pairs)):
        adapter = NAMED.get(given) if isinstance(given, str) else given
        if adapter is None:
            raise CheckpointError(
                f"adapt: there is no adapter {given!r}\n  known: {', '.join(NAMED)}, and ClassRows(...)\n"
                "  fix: one of these"
            )
        if isinstance(adapter, ClassRows) and pattern == "*":
            raise CheckpointError('adapt: ClassRows for which layer?\n  fix: adapt={"fc": ClassRows(...)}')
        found.append((pattern, adapter))
    return found


def _everywhere(given: str | Adapter) -> str:
    """Where an adapter applies that was given without a place: classifiers too may have a square number of rows."""
    return "*pos*" if given == "position-embedding" or isinstance(given, PositionEmbedding) else "*"


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
