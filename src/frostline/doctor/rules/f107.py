"""F107: parameters are frozen, but normalization statistics still move."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import biggest, call_at, counted, drift_of, freezer, last_mode_call, selectors_of, writer
from frostline.findings import Safety, Severity
from frostline.state import names


def look(seen: Seen) -> Iterator[Found]:
    """Statistics of a part without trainable parameters that moved while its layers were in train mode."""
    for model in seen.models:
        moved = [t for t in model.buffers if _is_meant(t, model) and t.moved and t.must_stay != "eval"]
        moved = [t for t in moved if not _follows(t, model)]
        if not moved:
            continue
        layers = tuple(dict.fromkeys(t.module for t in moved))
        worst = biggest(moved)
        call = last_mode_call(seen, model.name, mode=True)
        why = "left out of the optimizer" if worst.must_stay == "optimizer" else "requires_grad=False"
        evidence = [f"{worst.path}: {drift_of(worst, seen)}"]
        evidence += writer(worst)
        evidence.append(
            f"training=True in {counted(len(layers), 'layer')}"
            + (f" (set by {call_at(call.place)})" if call is not None else "")
            + f"; {why} does not stop statistics"
        )
        still = [t for t in model.parameters if t.must_stay and not t.moved]
        if still:
            evidence.append(f"{counted(len(still), 'frozen parameter')} did not move")
        yield Found(
            message=f"{counted(len(layers), 'normalization layer')} of a frozen part moved "
            f"{'its' if len(layers) == 1 else 'their'} statistics",
            model=model.name,
            paths=tuple(t.path for t in moved),
            evidence=tuple(evidence),
            remedy=f"frostline.freeze({model.name}, {selectors_of(layers, model)})",
            severity=Severity.ERROR,
            safety=Safety.SAFE,
            place=worst.writes[0].place if worst.writes else call.place if call else None,
            repair=freezer(seen, model, layers, what=counted(len(layers), "normalization layer")),
            inferred=worst.must_stay not in {"hold", "declared"},
        )


def _is_meant(tensor: TensorSeen, model: ModelSeen) -> bool:
    module = model.modules[tensor.module]
    return bool(tensor.must_stay) and "stats" in module.kinds and tensor.role.startswith("norm.")


def _follows(tensor: TensorSeen, model: ModelSeen) -> bool:
    """Whether the part is no frozen one, but follows another: a momentum encoder, whose parameters are written to."""
    top = tensor.module
    while (above := names.parent(top)) != top and (module := model.modules.get(above)) is not None and module.frozen:
        top = above
    return any(t.moved_between and t.must_stay == "requires_grad" for t in model.below(top) if t.kind == "parameter")


def sound(seen: Seen) -> str | None:
    """How many layers were meant to keep their statistics, and did."""
    kept = {
        (model.name, t.module)
        for model in seen.models
        for t in model.buffers
        if _is_meant(t, model) and not t.moved and model.contract_at is not None
    }
    return f"{counted(len(kept), 'normalization layer')} of frozen parts kept their statistics" if kept else None


RULE = Rule(
    code="F107",
    what="Compares the running statistics of every normalization layer whose part is frozen (held, declared, without a "
    "trainable parameter, or left out of every optimizer) with what they were before the first training step. What "
    "moves after the part was unfrozen is meant.",
    why="`requires_grad=False` is about gradients. In train mode a batch norm writes `running_mean`, `running_var` "
    "and `num_batches_tracked` in every forward pass, so the outputs of a frozen part drift, another head on it "
    "gets worse, and `named_parameters()` shows no difference, because statistics are buffers.",
    evidence="The digest of each buffer before and after, its largest change, the operator that wrote it and the line "
    "that called the model; from the first training step on.",
    example="for p in model.backbone.parameters():\n    p.requires_grad = False\nmodel.train()\nfor x, y in loader:\n"
    "    loss(model(x), y).backward()",
    instead='hold = frostline.freeze(model, "backbone", optimizer=optimizer)\nmodel.train()\nfor x, y in loader:\n'
    "    loss(model(x), y).backward()",
    remedy="Freeze the part with `frostline.freeze`, which keeps its mode too, or call `eval()` on its normalization "
    "layers after every `model.train()`.",
    safety=Safety.SAFE,
    how_safe="safe: it makes happen what was declared; the outputs change from batch statistics to running ones, as "
    "they will at test time",
    false_alarms="Statistics that are adapted on purpose while the affine parameters are fixed. Say so: "
    '`contract=Contract(moving=("backbone.*.running_*",))`.',
    source="pytorch#86590, ultralytics#8753, chemprop#952, pytorch/tutorials#449",
    look=look,
    sound=sound,
)
