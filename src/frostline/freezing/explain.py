"""What each layer of a model would do in the next training step: train, move its statistics, drop, or stay."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from frostline.attach.ledger import ledger_of
from frostline.errors import name_some
from frostline.findings import Finding, Safety, Severity
from frostline.freezing.handlers import KeepTensors
from frostline.norms.policy import StatsPolicy
from frostline.norms.policy_forward import PolicyForward
from frostline.norms.read_policy import DEFAULT, encoding_of, policy_of, set_by
from frostline.state import names
from frostline.state.expected import expect_model
from frostline.state.inventory import SCHEMA_VERSION
from frostline.state.selection import strict_ancestors
from frostline.tables import html_table, text_table


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        path: its dotted path.
        module_type: its class name.
        trainable: ``yes``, ``no``, ``part``, or ``None`` where it has no parameters of its own.
        mode: ``train`` or ``eval``.
        uses: the statistics that it normalizes with: ``batch``, ``running``, ``instance``, ``sample``, a blend or
            domains; ``None`` if it is no normalization layer.
        updates: whether a forward pass now would write its running statistics; ``None`` likewise.
        held: the levels of the holds on it, ``None`` if there is none.
        policy: both axes in words, ``uses batch, updates ema(0.1)``; ``None`` if it is no normalization layer.
        encoded: how PyTorch's switches stand: ``training=True, track_running_stats=False, buffers kept``; likewise.
        set_by: what brought it to that policy: a hold, a policy, domains, another tool by its fingerprint, the user's
            ``eval()``, or the default; likewise.
    """

    path: str
    module_type: str
    trainable: str | None
    mode: str
    uses: str | None
    updates: bool | None
    held: str | None
    policy: str | None = None
    encoded: str | None = None
    set_by: str | None = None


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
        columns, rows = self.table()
        encoded = [f"{names.name_folded(paths, root='(root)')}: {how}" for how, paths in self._notable().items()]
        notes = ["as PyTorch has it:", *(f"  {line}" for line in encoded)] if encoded else []
        # The paths must not pay for what is rarely there.
        width = 100 if len(columns) < len(_COLUMNS) else 150
        return "\n".join([text_table(columns, rows, width=width), *notes, *(str(finding) for finding in self.findings)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(*self.table(), caption=self.model_type)

    def _notable(self) -> dict[str, list[str]]:
        """How PyTorch's switches stand, and where, for what something else than the default or a hold has set."""
        found: dict[str, list[str]] = {}
        for row in self:
            if row.encoded is not None and _sets(row) is not None:
                found.setdefault(row.encoded, []).append(row.path)
        return found

    def table(self) -> tuple[list[str], list[list[object]]]:
        """The headings and the rows that are printed.

        Neighbours and namesakes that are alike share a row: 53 batch norms need not take 53 lines.
        """
        columns = _COLUMNS if any(_sets(row) for row in self) else _COLUMNS[:-1]
        groups: dict[LayerRow, list[str]] = {}
        for row in self:
            groups.setdefault(replace(row, path="", encoded=None), []).append(row.path)
        lines: list[tuple[int, list[object]]] = []
        order = {row.path: i for i, row in enumerate(self)}
        for alike, paths in groups.items():
            for folded in names.fold(paths):
                # The words of the policy, where it updates: `ema(0.1)`.
                updates = (alike.policy or "").partition(", updates ")[2] if alike.updates else alike.updates
                cells: list[object] = [
                    str(folded) or "(root)",
                    alike.module_type,
                    alike.trainable,
                    alike.mode,
                    alike.uses,
                    updates,
                    alike.held,
                    _sets(alike),
                ]
                lines.append((order[folded.paths[0]], cells[: len(columns)]))
        return columns, [cells for _, cells in sorted(lines, key=lambda line: line[0])]


_COLUMNS = ["layer", "type", "trains", "mode", "normalizes with", "updates", "held", "set by"]


def _sets(row: LayerRow) -> str | None:
    """What set the policy, where that is worth a column: holds have one of their own."""
    return None if row.held or row.set_by == DEFAULT else row.set_by


def explain(model: nn.Module) -> Explanation:
    """Say for each layer whether it trains, in which mode it is, which statistics it uses and which it updates.

    Decided as PyTorch decides it in forward, not by what the flags are called: ``track_running_stats=False`` set later
    does not make a batch norm use the batch in eval mode, and a training layer never normalizes with its running
    statistics. Where a policy, domains or a commit per step replace what PyTorch does, it is their word that counts. A
    column ``set by`` appears where something else than the default or a hold has set what a layer does: one of these,
    or another tool, known by what it left behind. The model is only read; nothing is run.

    Args:
        model: any module.

    Returns:
        A row for each layer that has parameters of its own, statistics, or a behaviour that depends on its mode.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
        >>> print(explain(model))
        layer  type         trains  mode   normalizes with  updates   held
        ─────  ───────────  ──────  ─────  ───────────────  ────────  ────
        0      Linear       no      train  –                –         –
        1      BatchNorm1d  no      train  batch            ema(0.1)  –
        F107 warning: 1 normalization layers have no trainable parameter, yet would move their statistics
          seen: training=True, requires_grad=False: 1
          fix:  frostline.freeze(model, '1')
    """
    expect_model(model, "explain", "explain(model)")
    root = names.unwrap(model)
    modules = dict(root.named_modules())
    rows = [
        _row(path, module, inside_training=any(modules[above].training for above in strict_ancestors([path])))
        for path, module in modules.items()
        if _matters(module)
    ]
    # An update that a policy asks for is meant.
    moving = [row for row in rows if row.updates and row.set_by != PolicyForward.set_by]
    half = [row.path for row in moving if row.trainable == "no"]
    findings = [_half_frozen(half)] if half else []
    return Explanation(rows, type(root).__name__, findings)


def _matters(module: nn.Module) -> bool:
    return bool(
        any(p is not None for p in module._parameters.values())
        or policy_of(module) is not None
        or "drop" in type(module).__name__.lower()
        or "StochasticDepth" in type(module).__name__
    )


def _row(path: str, module: nn.Module, *, inside_training: bool) -> LayerRow:
    own = [p for p in module._parameters.values() if p is not None]
    trains = sum(p.requires_grad for p in own)
    trainable = None if not own else "yes" if trains == len(own) else "part" if trains else "no"
    policy = _policy(module)
    ledger = ledger_of(module)
    return LayerRow(
        path=path,
        module_type=type(module).__name__,
        trainable=trainable,
        mode="train" if module.training else "eval",
        uses=str(policy.use) if policy else None,
        updates=policy.update is not None if policy else None,
        held=", ".join(sorted(set(ledger.tokens.values()))) if ledger else None,
        policy=str(policy) if policy else None,
        encoded=encoding_of(module) if policy else None,
        set_by=set_by(module, inside_training=inside_training) if policy else None,
    )


def _policy(module: nn.Module) -> StatsPolicy | None:
    policy, ledger = policy_of(module), ledger_of(module)
    # A layer that writes to copies in forward does not move, whatever its switches say.
    if policy is not None and ledger is not None and KeepTensors() in ledger.handlers:
        return replace(policy, update=None)
    return policy


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
