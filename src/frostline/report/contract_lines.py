"""What was meant to happen to the tensors and modules of a model, and what did: a line for each; pure Python."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.report import figures

# What was meant and what happened, in the order in which a bar is read.
STATES = {
    "broken": "was to stay, moved",
    "held": "was to stay, did not move",
    "trained": "trains, moved",
    "idle": "trainable, did not move",
    "adapted": "statistics, moved",
    "resting": "statistics, did not move",
    "free": "other",
}
_MEANT = {"stay": ("held", "broken"), "train": ("idle", "trained"), "statistics": ("resting", "adapted")}


@dataclass(frozen=True)
class TensorLine:
    """One parameter or buffer.

    Attributes:
        path: its dotted path.
        module: the path of its module.
        role: what it is for, ``norm.mean`` for example.
        meant: ``stay``, ``train``, ``statistics`` (may move) or empty (nothing was meant).
        moved: whether its bytes changed.
        why: why it must stay, in a few words.
        written: what wrote it and where; empty where that is not known.
        note: what else is to be said of it.
        first_moved: how many steps were done when it was first seen to differ; ``None`` where that is not known.
        drift: steps done, and largest difference to the start, where it must stay.
        codes: the codes of findings that name it.
    """

    path: str
    module: str
    role: str
    meant: str
    moved: bool
    why: str = ""
    written: str = ""
    note: str = ""
    first_moved: int | None = None
    drift: tuple[tuple[int, float], ...] = ()
    codes: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """A key of :data:`STATES`.

        Example:
            >>> TensorLine("bn.running_mean", "bn", "norm.mean", "stay", moved=True).state
            'broken'
        """
        return _MEANT.get(self.meant, ("free", "free"))[self.moved]

    @property
    def size(self) -> float:
        """How far it moved at most; 0.0 where that is not known."""
        return max((size for _, size in self.drift), default=0.0)

    @property
    def detail(self) -> str:
        """How far it moved against what was meant, when, and by what.

        Example:
            >>> TensorLine("w", "", "weight", "stay", True, first_moved=1, drift=((1, 0.5),)).detail
            'by up to 0.5, first seen after step 1'
        """
        said: list[str] = []
        if self.state == "broken":
            if self.size:
                said.append(f"by up to {figures.size(self.size)}")
            if self.first_moved is not None:
                said.append(f"first seen {when(self.first_moved)}")
        return ", ".join([*said, *(part for part in (self.written, self.note) if part)])


def when(steps: int) -> str:
    """A time in the loop.

    Example:
        >>> when(0), when(1200)
        ('in the first step', 'after step 1,200')
    """
    return f"after step {steps:,}" if steps else "in the first step"


@dataclass(frozen=True)
class ModuleLine:
    """One module.

    Attributes:
        path: its dotted path; empty for the model itself.
        type: its class name.
        mode: ``train`` or ``eval``, in training.
        must_eval: why it was to stay in eval mode; empty if it was not.
        codes: the codes of findings that name it.
    """

    path: str
    type: str
    mode: str
    must_eval: str = ""
    codes: tuple[str, ...] = ()
