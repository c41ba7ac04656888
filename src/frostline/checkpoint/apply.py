"""Carry out a plan: every value is checked, written in place and compared by digest, or the model is as it was."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frostline.checkpoint.load_report import LoadReport, report_on
from frostline.checkpoint.patterns import meant_by
from frostline.checkpoint.plan import LoadPlan, Row
from frostline.checkpoint.processes import groups_of, in_every_process
from frostline.checkpoint.tensor_writer import combined_digest
from frostline.errors import CheckpointError, printable
from frostline.state.digest import digest, digest_all
from frostline.state.inventory import inventory
from frostline.state.shards import cut, own_part, part_of, reshard, whole

_MOST_LINES = 8


def apply_plan(plan: LoadPlan, model: nn.Module | None = None) -> LoadReport:
    """Write what a plan says; see :meth:`frostline.checkpoint.plan.LoadPlan.apply`.

    One value is read, checked and written after the other, so that beside the model no more is in memory than what it
    had before.

    Args:
        plan: what to do.
        model: a copy of the plan's model to do it to instead.

    Returns:
        The :class:`~frostline.checkpoint.load_report.LoadReport`.

    Raises:
        CheckpointError: as in :meth:`~frostline.checkpoint.plan.LoadPlan.apply`.
    """
    model = plan.model if model is None else model
    reshard(model)
    tensors = inventory(model).tensors
    groups = groups_of(tensors.values())
    accepted = in_every_process(groups, lambda: _check(plan, tensors))[0]
    # What an operation keeps of a sharded tensor is gathered, in the same order everywhere, before anything can fail.
    kept = {row.target for row in plan.loaded if any(operation.needs_current for operation in row.operations)}
    current = {name: whole(tensor) if name in kept else tensor for name, tensor in tensors.items()}
    undo: list[tuple[Tensor, Tensor]] = []
    digests: dict[str, str] = {}
    borne: list[str] = []
    try:
        told = in_every_process(groups, lambda: _write_all(plan, tensors, current, accepted, undo, digests, borne))
        if len(set(told)) > 1:
            raise CheckpointError(
                f"{plan.source.title}: the processes would load different values; nothing was changed\n"
                "  fix: the same file and the same arguments in each process"
            )
    except BaseException:
        with torch.no_grad():
            for target, before in reversed(undo):
                target.copy_(before)
        raise
    return report_on(plan, digests, borne)


def _check(plan: LoadPlan, tensors: dict[str, Tensor]) -> frozenset[str]:
    """See that the plan can be applied, and which entries may have suspect values."""
    plan.check()
    _check_unchanged(plan, tensors)
    targets = [row.target for row in plan.rows if row.target]
    return frozenset(meant_by(targets, plan.accept_suspect, argument="accept_suspect", where="the model"))


def _write_all(
    plan: LoadPlan,
    tensors: dict[str, Tensor],
    current: dict[str, Tensor],
    accepted: frozenset[str],
    undo: list[tuple[Tensor, Tensor]],
    digests: dict[str, str],
    borne: list[str],
) -> str:
    """Write each value, or of a sharded tensor the part of it that this process holds, and compare what is there.

    Returns:
        A digest of all values, of whole tensors.
    """
    held = {name: own_part(tensor) for name, tensor in tensors.items()}
    targets = {row.target: held[row.target] for row in plan.rows if row.target and _is_written(row)}
    # What is not loaded may share memory with what is, in ways that no name tells.
    left = {name: tensor for name, tensor in held.items() if name not in targets and _has_bytes(tensor)}
    expected = digest_all(left)
    suspects: list[str] = []

    def write(name: str, value: Tensor) -> None:
        part = part_of(tensors[name])
        digests[name] = digest(value)
        expected[name] = digests[name] if part is None else digest(cut(value, part))
        _write(held[name], cut(value, part), undo)

    for row, value in plan.values(current):
        assert row.target is not None
        reason = _suspect(row, value)
        if reason:
            said = f"{printable(row.source or '')} -> {row.target}: {reason}"
            (borne if row.target in accepted else suspects).append(said)
        if not suspects:
            write(row.target, value)
    if suspects:
        raise CheckpointError(_refuse_suspects(plan, suspects))
    for row in plan.rows:
        if row.verdict == "filled:0" and row.target:
            write(row.target, torch.zeros(tensors[row.target].shape, dtype=tensors[row.target].dtype))
    found = digest_all({**targets, **left})
    wrong = [name for name, mark in expected.items() if found[name] != mark]
    if wrong:
        raise CheckpointError(
            f"{plan.source.title} did not arrive: {len(wrong)} tensors differ after writing; nothing was changed\n"
            f"  differing: {', '.join(wrong[:_MOST_LINES])}\n"
            "  fix: tensors that share memory without being the same tensor need a checkpoint of their own"
        )
    return combined_digest(digests)


def _check_unchanged(plan: LoadPlan, tensors: dict[str, Tensor]) -> None:
    """The model must still be the one that was planned for."""
    for row in plan.rows:
        tensor = tensors.get(row.target) if row.target else None
        if row.target and row.shape_target is not None and (tensor is None or tuple(tensor.shape) != row.shape_target):
            raise CheckpointError(
                f"the model has changed since it was planned for: {row.target} was {row.shape_target}\n"
                f"  found: {'nothing of that name' if tensor is None else tuple(tensor.shape)}\n  fix: plan again"
            )


def _is_written(row: Row) -> bool:
    return row.is_loaded or row.verdict == "filled:0"


def _has_bytes(tensor: Tensor) -> bool:
    lazy = torch.nn.parameter.is_lazy(tensor)
    return not lazy and tensor.device.type != "meta" and tensor.layout is torch.strided


def _write(target: Tensor, value: Tensor, undo: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        undo.append((target, target.detach().clone()))
        target.copy_(value)


def _suspect(row: Row, value: Tensor) -> str:
    """What about a value cannot be meant; empty if nothing."""
    if value.is_floating_point() or value.is_complex():
        # Types of 8 bits know no isfinite.
        seen = value.float() if value.dtype.itemsize == 1 else value
        # One NaN or infinity shows in the sum, which takes one pass; a sum may be infinite for other reasons too.
        broken = 0 if bool(torch.isfinite(seen.sum())) else int((~torch.isfinite(seen)).sum())
        if broken:
            return f"{broken:,} of {value.numel():,} values are NaN or infinite"
        if (row.target or "").rpartition(".")[2] == "running_var" and bool((seen < 0).any()):
            count = int((seen < 0).sum())
            return f"{count:,} of {value.numel():,} variances are negative, the least {float(seen.min()):.3g}"
    return ""


def _refuse_suspects(plan: LoadPlan, suspects: list[str]) -> str:
    more = [f"    (+{len(suspects) - _MOST_LINES} more)"] if len(suspects) > _MOST_LINES else []
    first = suspects[0].partition(" -> ")[2].partition(":")[0]
    return "\n".join(
        [
            f"{plan.source.title} has values that cannot be meant; nothing was changed",
            f"  suspect-values: {len(suspects)}",
            *(f"    {suspect}" for suspect in suspects[:_MOST_LINES]),
            *more,
            f"  fix: another checkpoint; if they are meant, accept_suspect={first!r}",
        ]
    )
