"""What each layer of a model would do in the next training step: train, move its statistics, drop, or stay."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from frostline.attach.ledger import ledger_of
from frostline.errors import name_some
from frostline.findings import Finding, Safety, Severity
from frostline.freezing.handlers import KeepTensors
from frostline.norms.layers import statistics_of
from frostline.state import names
from frostline.state.inventory import SCHEMA_VERSION
from frostline.tables import html_table, text_table


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        path: its dotted path.
        module_type: its class name.
        trainable: ``yes``, ``no``, ``part``, or ``None`` where it has no parameters of its own.
        mode: ``train`` or ``eval``.
        uses: the statistics that it normalizes with: ``batch``, ``running``, ``instance``, ``sample``; ``None`` if it
            is no normalization layer.
        updates: whether a forward pass now would write its running statistics; ``None`` likewise.
        held: the levels of the holds on it, ``None`` if there is none.
    """

    path: str
    module_type: str
    trainable: str | None
    mode: str
    uses: str | None
    updates: bool | None
    held: str | None


class Explanation(list[LayerRow]):
    """The rows, one a layer, and what is to be said about them; prints as a table, also in a notebook.

    Attributes:
        model_type: the class name of the model.
        findings: layers that are frozen by half.
    """

    def __init__(self, rows: list[LayerRow], model_type: str, findings: list[Finding]) -> None:
        super().__init__(rows)
        self.model_type = model_type
        self.findings = findings

    def to_json(self) -> dict[str, Any]:
        """The explanation as JSON-ready values with a schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model_type,
            "layers": [asdict(row) for row in self],
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        table = text_table(_COLUMNS, self._rows(), width=100)
        return "\n".join([table, *(str(finding) for finding in self.findings)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows(), caption=self.model_type)

    def _rows(self) -> list[list[object]]:
        """Neighbours and namesakes that are alike share a row: 53 batch norms need not take 53 lines."""
        groups: dict[tuple[object, ...], list[LayerRow]] = {}
        for row in self:
            groups.setdefault((row.module_type, row.trainable, row.mode, row.uses, row.updates, row.held), []).append(
                row
            )
        known = {row.path: row for row in self}
        lines: list[tuple[int, list[object]]] = []
        order = {row.path: i for i, row in enumerate(self)}
        for members in groups.values():
            for folded in names.fold([row.path for row in members]):
                r = known[folded.paths[0]]
                cells: list[object] = [
                    str(folded) or "(root)",
                    r.module_type,
                    r.trainable,
                    r.mode,
                    r.uses,
                    r.updates,
                    r.held,
                ]
                lines.append((order[folded.paths[0]], cells))
        return [cells for _, cells in sorted(lines, key=lambda line: line[0])]


_COLUMNS = ["layer", "type", "trains", "mode", "normalizes with", "updates", "held"]


def explain(model: nn.Module) -> Explanation:
    """Say for each layer whether it trains, in which mode it is, which statistics it uses and which it updates.

    Decided as PyTorch decides it in forward, not by what the flags are called: ``track_running_stats=False`` set later
    does not make a batch norm use the batch in eval mode, and a training layer never normalizes with its running
    statistics. The model is only read; nothing is run.

    Args:
        model: any module.

    Returns:
        A row for each layer that has parameters of its own, statistics, or a behaviour that depends on its mode.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
        >>> print(explain(model))
        layer  type         trains  mode   normalizes with  updates  held
        ─────  ───────────  ──────  ─────  ───────────────  ───────  ────
        0      Linear       no      train  –                –        –
        1      BatchNorm1d  no      train  batch            yes      –
        F107 warning: 1 normalization layers have no trainable parameter, yet would move their statistics
          seen: training=True, requires_grad=False: 1
          fix:  frostline.freeze(model, '1')
    """
    root = names.unwrap(model)
    rows = [_row(path, module) for path, module in root.named_modules() if _matters(module)]
    half = [row.path for row in rows if row.updates and row.trainable == "no"]
    findings = [_half_frozen(half)] if half else []
    return Explanation(rows, type(root).__name__, findings)


def _matters(module: nn.Module) -> bool:
    return bool(
        any(p is not None for p in module._parameters.values())
        or statistics_of(module) is not None
        or "drop" in type(module).__name__.lower()
        or "StochasticDepth" in type(module).__name__
    )


def _row(path: str, module: nn.Module) -> LayerRow:
    own = [p for p in module._parameters.values() if p is not None]
    trains = sum(p.requires_grad for p in own)
    trainable = None if not own else "yes" if trains == len(own) else "part" if trains else "no"
    use = statistics_of(module)
    ledger = ledger_of(module)
    return LayerRow(
        path=path,
        module_type=type(module).__name__,
        trainable=trainable,
        mode="train" if module.training else "eval",
        uses=use.uses if use else None,
        # A layer that writes to copies in forward does not move, whatever its switches say.
        updates=use.updates and not (ledger and KeepTensors() in ledger.handlers) if use else None,
        held=", ".join(sorted(set(ledger.tokens.values()))) if ledger else None,
    )


def _half_frozen(paths: list[str]) -> Finding:
    folded = [str(f) for f in names.fold(paths)]
    return Finding(
        code="F107",
        severity=Severity.WARNING,
        message=f"{len(paths)} normalization layers have no trainable parameter, yet would move their statistics",
        where=paths[0],
        evidence=f"training=True, requires_grad=False: {name_some(folded)}",
        remedy=f"frostline.freeze(model, {', '.join(repr(p) for p in paths[:3])}{', ...' if len(paths) > 3 else ''})",
        safety=Safety.UNSAFE,
        paths=tuple(paths),
    )
