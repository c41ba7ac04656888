"""One tensor of a model under watch: where it stands, what must become of it, and what has been seen of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.audit.marks import marks
from frostline.audit.seen import Write

# A parameter above this was never initialized, or has diverged.
HUGE = 1e4


@dataclass(slots=True)
class Row:
    """One tensor under one path.

    Attributes:
        table: the table of its module that has it, parameters or buffers.
        version: its version counter at the last look.
        pointer: the address of its data at the last look.
        digest: what its bytes were when the contract was taken.
        now: what they were at the last look that read them.
        copy: its values when the contract was taken, where they are kept.
        first: the tensor that stood here then.
        ground: why it must stay where that was inferred; kept while it is let go.
        let_go: its part was unfrozen: what it does from then on is meant.

    All others are those of :class:`~frostline.audit.seen.TensorSeen`.
    """

    path: str
    kind: str
    name: str
    owner: nn.Module
    table: dict[str, Any]
    tensor: Tensor
    role: str
    version: int = 0
    pointer: int = 0
    must_stay: str = ""
    trainable: bool = False
    digest: str = ""
    now: str = ""
    copy: Tensor | None = None
    first: Tensor | None = None
    ground: str = ""
    let_go: bool = False
    moved: bool = False
    first_moved: int | None = None
    in_step: int = 0
    between: int = 0
    gradients: int = 0
    steps: int = 0
    replaced: bool = False
    may_move: bool = False
    odd_at_start: str = ""
    drift: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    writes: list[Write] = field(default_factory=list[Write])

    def read(self) -> None:
        """Take down where the tensor stands now."""
        self.version, self.pointer = version_of(self.tensor), pointer_of(self.tensor)


def version_of(tensor: Tensor) -> int:
    """The version counter; a tensor that was made in inference mode has none."""
    return 0 if is_lazy(tensor) or tensor.is_inference() else tensor._version


def pointer_of(tensor: Tensor) -> int:
    """The address of the data; 0 where there is none (meta, lazy, some subclasses)."""
    try:
        return tensor.data_ptr()
    except (RuntimeError, ValueError, NotImplementedError):
        return 0


def digests(rows: Iterable[Row]) -> Iterator[tuple[Row, str]]:
    """The digest of each; empty where a tensor has no bytes."""
    by_path = {row.path: row for row in rows}
    for path, mark in marks({path: row.tensor for path, row in by_path.items()}).items():
        yield by_path[path], mark


@torch.no_grad()
def distance(row: Row) -> float | None:
    """The largest absolute difference to the copy; ``None`` where there is none to compare with."""
    if row.copy is None or row.copy.shape != row.tensor.shape or row.copy.device != row.tensor.device:
        return None
    if not row.tensor.numel():
        return None
    wide = torch.complex128 if row.tensor.is_complex() else torch.float64
    try:
        return float((row.tensor.detach().to(wide) - row.copy.to(wide)).abs().max())
    except (NotImplementedError, RuntimeError):
        return None


def check_start(rows: Iterable[Row]) -> None:
    """Mark parameters and statistics that hold NaN, infinity or absurd values; once, when the contract is taken."""
    for row in rows:
        tensor = row.tensor
        if not (row.kind == "parameter" or row.role.startswith("norm.")) or not pointer_of(tensor):
            continue
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        most = largest(tensor)
        row.odd_at_start = "nan" if math.isnan(most) else "inf" if math.isinf(most) else ""
        if not row.odd_at_start and most > HUGE and row.kind == "parameter":
            row.odd_at_start = "huge"


def largest(tensor: Tensor) -> float:
    """The largest magnitude in a tensor that has elements; NaN where there is one."""
    return float(tensor.detach().abs().max())
