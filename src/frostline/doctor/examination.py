"""What the doctor says of a loop: findings in the order of their causes, what was right, and remedies in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from frostline.audit.seen import Seen
from frostline.findings import Finding, Severity
from frostline.tables import html_text

SCHEMA_VERSION = 1
_ORDER = [Severity.ERROR, Severity.WARNING, Severity.INFO]


@dataclass(frozen=True)
class Comparison:
    """The same audit before and after remedies.

    Attributes:
        gone: findings that are no longer there.
        left: findings that still are.
        new: findings that were not there before.
    """

    gone: tuple[Finding, ...]
    left: tuple[Finding, ...]
    new: tuple[Finding, ...]

    def __str__(self) -> str:
        rows = (
            [("gone", f) for f in self.gone] + [("still there", f) for f in self.left] + [("new", f) for f in self.new]
        )
        before, after = len(self.gone) + len(self.left), len(self.left) + len(self.new)
        return "\n".join([f"{before} before, {after} after", *(f"  {how}: {f.code} {f.message}" for how, f in rows)])

    def _repr_html_(self) -> str:
        return html_text(self)


class Examination(list[Finding]):
    """The findings, the worst cause first; prints itself, also in a notebook.

    Attributes:
        seen: what was looked at.
        checked: the codes of the rules that were asked.
        sound: what was checked and found right, a sentence each.
    """

    def __init__(
        self,
        findings: Iterable[Finding],
        seen: Seen,
        checked: Sequence[str],
        sound: Sequence[str],
        repairs: dict[str, Callable[[], str]],
    ) -> None:
        super().__init__(findings)
        self.seen = seen
        self.checked = list(checked)
        self.sound = list(sound)
        self._repairs = repairs

    @property
    def repairable(self) -> list[Finding]:
        """The findings whose remedy is safe and can be done in memory."""
        return [finding for finding in self if finding.id in self._repairs]

    def apply(self) -> list[str]:
        """Do the remedies that are safe in memory; the others are printed by the findings as edits.

        The models and optimizers that were watched are changed: holds are put on, groups are added. Parameter and
        buffer values are not touched. A remedy that was applied is not applied again. Watch the loop once more and
        :meth:`compare` to see what it did.

        Returns:
            What was done, a line for each finding.

        Example:
            >>> import torch
            >>> import frostline as fl
            >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
            >>> _ = model[0].requires_grad_(False)
            >>> optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
            >>> def loop():
            ...     for _ in range(2):
            ...         optimizer.zero_grad()
            ...         model.train()(torch.randn(4, 2)).sum().backward()
            ...         optimizer.step()
            >>> with fl.watch(model, optimizer) as seen:
            ...     loop()
            >>> found = fl.examine(seen)
            >>> found.apply()
            ['F107: a hold on 1 normalization layer']
            >>> with fl.watch(model, optimizer) as again:
            ...     loop()
            >>> print(found.compare(fl.examine(again)))
            1 before, 0 after
              gone: F107 1 normalization layer of a frozen part moved its statistics
        """
        return [f"{finding.code}: {self._repairs.pop(finding.id)()}" for finding in self.repairable]

    def compare(self, after: Examination) -> Comparison:
        """This examination against a later one of the same loop."""
        before_ids, after_ids = {f.id for f in self}, {f.id for f in after}
        return Comparison(
            gone=tuple(f for f in self if f.id not in after_ids),
            left=tuple(f for f in after if f.id in before_ids),
            new=tuple(f for f in after if f.id not in before_ids),
        )

    def of(self, severity: Severity) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self if finding.severity is severity]

    def worse_than(self, severity: Severity) -> list[Finding]:
        """The findings of this severity or a worse one: those that a command fails on."""
        return [finding for finding in self if _ORDER.index(finding.severity) <= _ORDER.index(severity)]

    def to_json(self) -> dict[str, Any]:
        """The examination as JSON-ready values with a schema version."""
        seen = self.seen
        return {
            "schema_version": SCHEMA_VERSION,
            "script": seen.script,
            "ended": seen.ended,
            "steps": len(seen.steps),
            "seconds": round(seen.seconds, 6),
            "cost_seconds": round(seen.cost, 6),
            "models": [{"name": m.name, "type": m.type, "tensors": len(m.tensors)} for m in seen.models],
            "optimizers": [{"name": o.name, "type": o.type, "steps": o.steps} for o in seen.optimizers],
            "findings": [f.to_dict() | {"repairable": f.id in self._repairs} for f in self],
            "sound": self.sound,
            "checked": self.checked,
            "missed": seen.missed,
            "crash": None if seen.crash is None else seen.crash.to_dict(),
        }

    def __str__(self) -> str:
        seen = self.seen
        counts = [f"{len(self.of(s))} {s.value}{'' if len(self.of(s)) == 1 else 's'}" for s in _ORDER if self.of(s)]
        head = (
            f"{len(seen.steps)} steps, {len(seen.forwards)} forward passes looked at: "
            f"{', '.join(counts) or 'nothing found'}; {len(self.sound)} things found right"
        )
        return "\n".join([head, *(str(f) for f in self), *(f"right: {line}" for line in self.sound)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"
