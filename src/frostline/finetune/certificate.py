"""The freeze certificate: every held entry with its digest before and after."""

from __future__ import annotations

from typing import Any

from frostline.state.inventory import SCHEMA_VERSION, TENSOR_KINDS
from frostline.state.snapshot import Snapshot
from frostline.tasks.isolation import IsolationReport


def tensors_of(before: Snapshot) -> Snapshot:
    """The tensors of a snapshot; the naive loop is judged by them alone, its flags are what it is naive about."""
    part = Snapshot({path: record for path, record in before.items() if record.kind in TENSOR_KINDS})
    part.partial = True
    return part


def certify(
    rows: dict[str, dict[str, Any]],
    report: IsolationReport,
    naive: tuple[dict[str, dict[str, Any]], IsolationReport] | None = None,
) -> dict[str, Any]:
    """The certificate as JSON-ready values: what was held, what of it moved, what the heads say, and the naive twin.

    Args:
        rows: from :func:`~frostline.state.held_rows.held_rows`.
        report: the heads on the probe, before and after.
        naive: the same for the naive loop, where it was run.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        **_account(rows, report),
        "naive": None if naive is None else _account(*naive),
    }


def _account(rows: dict[str, dict[str, Any]], report: IsolationReport) -> dict[str, Any]:
    return {
        "held": rows,
        "moved": [path for path, row in rows.items() if not row["equal"]],
        "probe": {
            head.name: {
                "trained": head.trained,
                "logits_equal": head.logits_equal,
                "logits_max_abs": head.logits_max_abs,
                "predictions_changed": head.predictions_changed,
                "metric_before": head.metric_before,
                "metric_after": head.metric_after,
            }
            for head in report.heads
        },
    }
