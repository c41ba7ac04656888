"""D806: the optimizer was made before the model was wrapped or sharded."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.ownership import Owner, Ownership
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import is_below, related


def check(view: FileView) -> Iterator[Violation]:
    """Optimizers that were made from a model before it is sharded, and are neither made anew nor exchanged with it."""
    for flow in view.flows:
        wraps = [e for e in flow.of("wrap") if e.get("how") in {"fsdp", "prepare"} and e.get("of")]
        owned = Ownership(flow) if wraps else None
        for wrap in wraps if owned is not None else ():
            assert owned is not None
            yield from _too_early(view, flow, owned, wrap)


def _too_early(view: FileView, flow: Flow, owned: Ownership, wrap: Event) -> Iterator[Violation]:
    model = str(wrap.get("of"))
    owner = owned.orphaned(wrap, model)
    if owner is None or owner.event.node is None or owned.trains_after(wrap, owner) is False:
        return
    if not any(is_below(s.path, owned.path(model)) or is_below(owned.path(model), s.path) for s in owner.sources):
        return
    if wrap.get("how") == "prepare" and _is_exchanged(flow, wrap, owner):
        return
    by = _name(view, wrap)
    keeps = _keeps_parameters(wrap)
    is_prepare = wrap.get("how") == "prepare"
    yield Violation(
        owner.event.node,
        f"{owner.name} is made before {by} of line {wrap.line}: "
        + (
            "where it shards, the parameters of the model are others then"
            if is_prepare
            else "it holds the parameters from before"
        ),
        evidence=(
            f"made from {owner.given}; line {wrap.line} wraps {shown(model)}",
            *((f"it stands at {wrap.origin}",) if wrap.origin else ()),
            *(("no prepare() is given the optimizer",) if is_prepare else ()),
        ),
        remedy=f"accelerator.prepare({shown(model)}, {owner.name}), both in one call"
        if is_prepare
        else f"make {owner.name} behind line {wrap.line}",
        severity=Severity.WARNING if is_prepare or keeps or flow.has_callers else Severity.ERROR,
        inferred=is_prepare,
    )


def _is_exchanged(flow: Flow, wrap: Event, owner: Owner) -> bool:
    """Whether `prepare` is given the optimizer as well, or something that is not known."""
    if not owner.event.path or owner.event.path == "<return>":
        return True
    node = wrap.node
    if isinstance(node, ast.Call) and any(isinstance(each, ast.Starred) for each in node.args):
        return True
    prepared = [e for e in flow.of("wrap") if e.get("how") == "prepare"]
    return any(not e.get("of") or related(str(e.get("of")), owner.event.path) for e in prepared)


def _name(view: FileView, wrap: Event) -> str:
    if wrap.get("how") == "prepare":
        return "accelerator.prepare"
    if isinstance(wrap.node, ast.Call) and not wrap.origin:
        return view.text(wrap.node.func)
    return "sharding"


def _keeps_parameters(wrap: Event) -> bool:
    """Whether FSDP is asked to keep the parameters that there are, as views into its own."""
    return isinstance(wrap.node, ast.Call) and any(
        k.arg == "use_orig_params" and isinstance(k.value, ast.Constant) and k.value.value is True
        for k in wrap.node.keywords
    )


RULE = LintRule(
    code="D806",
    what="Looks for optimizers that are made from a model before `fully_shard` or `FullyShardedDataParallel` "
    "shards it, or before `accelerator.prepare` is given the model without the optimizer.",
    why="Sharding puts new parameters in the place of the old ones. An optimizer that was made before steps the "
    "old ones: the loss does not fall, no error is raised, and the memory of the unsharded parameters is never "
    "freed. `accelerator.prepare` exchanges them in an optimizer that it is given together with the model.",
    example="optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)\n"
    "model = torch.distributed.fsdp.FullyShardedDataParallel(model)\ntrain(model, optimizer)",
    instead="model = torch.distributed.fsdp.FullyShardedDataParallel(model)\n"
    "optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)\ntrain(model, optimizer)",
    remedy="Shard first and make the optimizer then; with accelerate, give both to one `prepare`.",
    safety=Safety.MANUAL,
    how_safe="manual: the optimizer, its scheduler and what is loaded into them have to move together",
    false_alarms="`accelerator.prepare` of the model alone is harmless on one device and under data parallelism, "
    "and is told as a warning. `DistributedDataParallel`, `.cuda()` and `.to(device)` keep the parameters, and "
    "are let be.",
    source="accelerate#2665, accelerate#3256, DeepSpeed#6770",
    triggers=("fully_shard", "FullyShardedDataParallel", "fsdp", "FSDP", ".prepare("),
    check=check,
)
