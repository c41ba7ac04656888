"""The same phase as users write it: ``requires_grad=False`` on what should stay, and ``model.train()``.

It is run on a copy, to measure what it does to the rest. Nothing of the library protects it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from frostline.finetune.certificate import tensors_of
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.loop import fit
from frostline.finetune.metrics import EpochRow
from frostline.finetune.problem import Phase
from frostline.finetune.progress import Progress
from frostline.state.held_rows import held_rows
from frostline.state.snapshot import Snapshot, snapshot
from frostline.tasks.isolation import Isolation, IsolationReport
from frostline.tasks.task_model import TaskModel


def train_naively(
    accelerator: Any,
    model: TaskModel,
    phase: Phase,
    config: FinetuneConfig,
    progress: Progress,
    *,
    number: int,
    held: Snapshot,
    probe: list[Tensor],
    labels: dict[str, Tensor],
    after_epoch: Callable[[EpochRow], None],
) -> tuple[dict[str, dict[str, Any]], IsolationReport]:
    """Train a copy of the model in the naive way, from the same start, in the same order, with the same seed.

    Args:
        accelerator: as for :func:`~frostline.finetune.loop.fit`.
        model: the model as the phase began; it is copied.
        phase: the phase.
        config: likewise.
        progress: likewise.
        number: likewise.
        held: what the library held in this phase.
        probe: the batches of the proof.
        labels: head to the classes of the probe.
        after_epoch: called with the row of each epoch.

    Returns:
        Path to before, after and equal for the tensors that should have stayed, and what became of the heads.
    """
    twin = copy.deepcopy(model)
    for path, parameter in twin.named_parameters():
        if path in held:
            parameter.requires_grad_(False)
    for name in twin.others(phase.task):
        nn.Module.requires_grad_(twin.heads[name], False)
    before = snapshot(twin, values=True)
    expected = tensors_of(held)
    isolation = Isolation(twin, phase.task, probe, labels)
    fit(
        accelerator,
        twin,
        phase,
        config,
        progress,
        name=f"{phase.task} (naive)",
        number=number,
        after_epoch=lambda row, *_: after_epoch(row),
    )
    moved = Snapshot({path: record for path, record in before.items() if path in expected})
    moved.partial = True
    diff = moved.diff(twin)
    rows = held_rows(expected, twin)
    return rows, isolation.report(diff)
