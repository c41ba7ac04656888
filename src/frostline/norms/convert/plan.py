"""A conversion as a value: what would change, what is exact, what is left alone and why; applied whole or not."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import nn

from frostline.errors import CannotConvert, NotConverted, name_some
from frostline.state import names
from frostline.state.inventory import SCHEMA_VERSION
from frostline.tables import html_table, html_text, text_table

_COLUMNS = ["layer", "from", "to", "exact", "note"]


@dataclass(frozen=True)
class ConversionRow:
    """One layer.

    Attributes:
        path: its first dotted path.
        from_type: what it is.
        to_type: what it becomes.
        exact: whether its output in eval mode stays equal to the bit.
        note: what else is to be known.
    """

    path: str
    from_type: str
    to_type: str
    exact: bool
    note: str


class Step(Protocol):
    """One change of a model."""

    @property
    def path(self) -> str:
        """The layer that it changes."""
        ...

    def why_stale(self) -> str | None:
        """What is no longer as it was when this was planned, so that it must not be carried out."""
        ...

    def why_overtaken(self) -> str | None:
        """What has happened to the new layer since, so that it must not be taken out."""
        ...

    def carry_out(self) -> None:
        """Make the change."""
        ...

    def difference(self) -> str | None:
        """What is wrong with the change, by value; ``None`` if nothing is."""
        ...

    def stand_in(self, module: nn.Module) -> nn.Module:
        """What the change has put in place of this module: itself where it is not the one that was replaced."""
        ...

    def take_back(self, *, keep_since: bool) -> None:
        """Undo the change, with or without what has happened since; nothing happens where it was not made."""
        ...


@dataclass
class ConversionResult:
    """A conversion that was applied.

    Attributes:
        model: the model; a new layer if the model itself was converted.
        plan: what was done.
    """

    model: nn.Module
    plan: ConversionPlan

    def __post_init__(self) -> None:
        self._done: tuple[Step, ...] = self.plan.steps

    def undo(self) -> nn.Module:
        """Put the original module objects back; a second time does nothing.

        What the layers share, they share still: parameters as trained since, modes as they are now. Statistics that the
        new layers did not have are those of before, and so are the weights of what was folded.

        Returns:
            The model that was converted.

        Raises:
            CannotConvert: a layer was replaced by something else since; then nothing is changed.
        """
        changed = [f"{step.path!r}: {why}" for step in self._done if (why := step.why_overtaken())]
        if changed:
            raise CannotConvert(f"undo: {name_some(changed)}\n  fix: undo the later change first")
        for step in reversed(self._done):
            step.take_back(keep_since=True)
        self._done = ()
        self.model = self.plan.model
        return self.model

    def __str__(self) -> str:
        return str(self.plan)

    def _repr_html_(self) -> str:
        return html_text(self)


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion would do; prints as a table, also in a notebook. Nothing has been changed.

    Attributes:
        model: the model that was given, with its wrappers.
        to: the target, in words.
        rows: what would change, layer by layer.
        skipped: path to the reason, for each normalization layer that stays as it is.
        lost: the skipped layers that do something of their own, which the target would not do.
    """

    model: nn.Module
    to: str
    rows: tuple[ConversionRow, ...]
    skipped: Mapping[str, str]
    lost: tuple[str, ...] = ()
    steps: tuple[Step, ...] = field(default=(), repr=False)

    def apply(self) -> ConversionResult:
        """Convert all layers of the plan, or none if anything goes wrong; every layer is checked by value.

        Raises:
            CannotConvert: the model is no longer what it was when this was planned, or a converted layer is not what it
                should be.

        Warns:
            NotConverted: layers that do something of their own were left alone.
        """
        stale = [f"{step.path!r}: {why}" for step in self.steps if (why := step.why_stale())]
        if stale:
            raise CannotConvert(
                f"apply: the model is not what it was when this was planned; {name_some(stale)}\n  fix: plan again"
            )
        begun: list[Step] = []
        try:
            for step in self.steps:
                begun.append(step)
                step.carry_out()
            wrong = {step.path: why for step in self.steps if (why := step.difference()) is not None}
            if wrong:
                path, why = next(iter(wrong.items()))
                raise CannotConvert(
                    f"{self.to}: {path or 'the model'!r} did not come out right: {why}; everything is as before\n"
                    f"  where: {name_some(list(wrong))}\n  fix: leave it out, with the selector {'!' + path!r}"
                )
        except BaseException:
            for step in reversed(begun):
                step.take_back(keep_since=False)
            raise
        if self.lost:
            folded = names.name_folded(self.lost, rest="plan.skipped")
            warnings.warn(
                f"{self.to}: left alone, because it would lose what these layers do of their own: {folded} "
                f"({self.skipped[self.lost[0]]})",
                NotConverted,
                stacklevel=2,
            )
        model = self.model
        for step in self.steps:
            model = step.stand_in(model)
        return ConversionResult(model, self)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready values with a schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": type(names.unwrap(self.model)).__name__,
            "to": self.to,
            "layers": [asdict(row) for row in self.rows],
            "skipped": dict(self.skipped),
        }

    def __str__(self) -> str:
        lines = [f"{type(names.unwrap(self.model)).__name__}: {self.to}, {len(self.rows)} layers"]
        if self.rows:
            lines.append(text_table(_COLUMNS, self._cells()))
        for reason in dict.fromkeys(self.skipped.values()):
            paths = [path for path, why in self.skipped.items() if why == reason]
            lines += [f"left as it is: {str(folded) or '(the model)'}: {reason}" for folded in names.fold(paths)]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._cells(), caption=f"{type(names.unwrap(self.model)).__name__}: {self.to}")

    def _cells(self) -> list[list[object]]:
        """Layers that are alike but for the numbers in their paths share a line."""
        groups: dict[tuple[object, ...], list[str]] = {}
        for row in self.rows:
            groups.setdefault((row.from_type, row.to_type, row.exact, row.note), []).append(row.path)
        return [
            [str(folded) or "(the model)", *alike] for alike, paths in groups.items() for folded in names.fold(paths)
        ]


def nothing_to_do(to: str, model: nn.Module, skipped: Mapping[str, str]) -> CannotConvert:
    """The error for a plan without rows.

    Example:
        >>> print(nothing_to_do("SyncNorm", nn.Linear(1, 1), {}))
        SyncNorm: no layer of Linear can be converted
          there is no normalization layer in what was selected
    """
    reasons = [f"  {path or '(the model)'}: {why}" for path, why in list(skipped.items())[:8]]
    return CannotConvert(
        f"{to}: no layer of {type(names.unwrap(model)).__name__} can be converted\n"
        + "\n".join(reasons or ["  there is no normalization layer in what was selected"])
    )
