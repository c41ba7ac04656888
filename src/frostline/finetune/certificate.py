"""The freeze certificate: every held entry with its digest before and after."""

from __future__ import annotations

from typing import Any

from torch import nn

from frostline.state.inventory import SCHEMA_VERSION, TENSOR_KINDS
from frostline.state.snapshot import Snapshot, snapshot
from frostline.tasks.isolation import IsolationReport


def held_rows(before: Snapshot, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Path to what the entry was, what it is, and whether the two are equal; digests for tensors, values for flags.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> held_rows(snapshot(layer), layer)["training"]
        {'before': True, 'after': True, 'equal': True}
    """
    after = snapshot(model)
    rows: dict[str, dict[str, Any]] = {}
    for path, record in before.items():
        now = after.get(path)
        mark = None if now is None else now.mark
        same = now is not None and (now.mark, now.dtype, now.shape) == (record.mark, record.dtype, record.shape)
        rows[path] = {"before": record.mark, "after": mark, "equal": same}
    return rows


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
        rows: from :func:`held_rows`.
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
