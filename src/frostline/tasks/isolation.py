"""Whether the heads that were not trained still give the same logits, to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from frostline.errors import name_some
from frostline.state.changes import StateDiff
from frostline.state.digest import digest
from frostline.state.inventory import SCHEMA_VERSION
from frostline.tables import html_table, text_table
from frostline.tasks.task_model import TaskModel


@dataclass(frozen=True)
class HeadReport:
    """What became of one head.

    Attributes:
        name: its name.
        trained: whether it is the one that was trained.
        logits_equal: whether its logits on the probe batch are equal to the bit.
        logits_max_abs: the largest absolute difference of a logit.
        predictions_changed: for how many samples of the probe another class is the largest.
        metric_before: its accuracy on the probe before, in 0..1; ``None`` without labels.
        metric_after: likewise after.
    """

    name: str
    trained: bool
    logits_equal: bool
    logits_max_abs: float
    predictions_changed: int
    metric_before: float | None
    metric_after: float | None


@dataclass(frozen=True)
class IsolationReport:
    """What training one task did to the rest.

    Attributes:
        task: the task that was trained.
        heads: a row for each head.
        diff: what moved among the entries that were to stay.
        held: how many entries were to stay.
        whole_trunk: whether all of the trunk was to stay; otherwise the other heads' logits are bound to change.
    """

    task: str
    heads: tuple[HeadReport, ...]
    diff: StateDiff
    whole_trunk: bool

    @property
    def held(self) -> int:
        """How many entries were to stay."""
        return len(self.diff.moved) + self.diff.still

    @property
    def isolated(self) -> bool:
        """Whether nothing that was to stay moved, and the other heads' logits are what the held part guarantees."""
        return not self.diff and (not self.whole_trunk or all(h.logits_equal for h in self.heads if not h.trained))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready values with a schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "task": self.task,
            "isolated": self.isolated,
            "whole_trunk": self.whole_trunk,
            "heads": [asdict(head) for head in self.heads],
            "diff": self.diff.to_json(),
        }

    def __str__(self) -> str:
        others = [head.name for head in self.heads if not head.trained]
        changed = [head.name for head in self.heads if not head.trained and not head.logits_equal]
        verdict = f"{self.held:,} held entries equal to the bit" if not self.diff else str(self.diff)
        told = (
            f"logits of {name_some(changed)} changed" if changed else f"logits of {name_some(others)} equal to the bit"
        )
        return "\n".join([f"trained {self.task!r}: {verdict}; {told}", text_table(_COLUMNS, self._rows())])

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows(), caption=f"trained {self.task}")

    def _rows(self) -> list[list[object]]:
        def percent(metric: float | None) -> str | None:
            return None if metric is None else f"{metric:.2%}"

        return [
            [
                head.name,
                head.trained,
                head.logits_equal,
                head.logits_max_abs,
                head.predictions_changed,
                percent(head.metric_before),
                percent(head.metric_after),
            ]
            for head in self.heads
        ]


_COLUMNS = ["head", "trained", "logits equal", "max |Δ logit|", "predictions changed", "before", "after"]


class Isolation:
    """Takes the logits of all heads on a probe batch now, and compares them later.

    Args:
        model: the trunk with its heads; it is left as it is.
        task: the task that will be trained.
        probe: a batch, or several.
        labels: head to the true classes (N,) of the probe, for the accuracies.
    """

    def __init__(
        self,
        model: TaskModel,
        task: str,
        probe: Tensor | Iterable[Tensor],
        labels: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._model = model
        self._task = model.known(task)
        self._probe = [probe] if isinstance(probe, Tensor) else list(probe)
        self._labels = dict(labels or {})
        self._before = logits_of(model, self._probe)

    def report(self, diff: StateDiff, *, whole_trunk: bool = True) -> IsolationReport:
        """Compare with the logits now.

        Args:
            diff: what moved among the entries that were to stay.
            whole_trunk: whether all of the trunk was to stay.
        """
        after = logits_of(self._model, self._probe)
        heads = tuple(self._compare(name, self._before[name], after[name]) for name in self._model.heads)
        return IsolationReport(self._task, heads, diff, whole_trunk)

    def _compare(self, name: str, before: Tensor, after: Tensor) -> HeadReport:
        gap = (after.double() - before.double()).abs()
        # Infinities of one sign, and NaNs on both sides, are no change although their difference is NaN.
        gap = torch.where((after == before) | (after.isnan() & before.isnan()), 0.0, gap)
        return HeadReport(
            name=name,
            trained=name == self._task,
            # By bytes: torch.equal would take 0 and -0 for equal, and a NaN for unequal to itself.
            logits_equal=digest(before) == digest(after),
            logits_max_abs=float(gap.max()) if gap.numel() else 0.0,
            predictions_changed=int((before.argmax(-1) != after.argmax(-1)).sum()),
            metric_before=self._accuracy(name, before),
            metric_after=self._accuracy(name, after),
        )

    def _accuracy(self, name: str, logits: Tensor) -> float | None:
        labels = self._labels.get(name)
        return None if labels is None else float((logits.argmax(-1) == labels.cpu()).double().mean())


@torch.no_grad()
def logits_of(model: TaskModel, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The logits of every head in eval mode, on the host. Modes come back as they were; nothing else is touched.

    Args:
        model: the trunk with its heads.
        batches: inputs; moved to the device of the model.

    Returns:
        Head to logits (N, classes).

    Example:
        >>> from torch import nn
        >>> model = TaskModel(nn.Dropout(), {"a": nn.Linear(2, 3)})
        >>> logits_of(model, [torch.zeros(4, 2)])["a"].shape, model.training
        (torch.Size([4, 3]), True)
    """
    modes = {module: module.training for module in model.modules()}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    parts: dict[str, list[Tensor]] = {name: [] for name in model.heads}
    try:
        # Flags are written directly: `eval()` could do more than set them, and would be undone below all the same.
        for module in modes:
            module.training = False
        for batch in batches:
            outputs = model(batch.to(device))
            for name, part in parts.items():
                part.append(outputs[name].cpu())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {name: torch.cat(part) for name, part in parts.items()}
