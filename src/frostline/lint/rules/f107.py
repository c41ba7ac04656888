"""F107: parameters are frozen, but normalization statistics still move."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import FrozenInTrainMode, eval_below, frozen_in_train_mode, shown
from frostline.lint.rule import LintRule, Violation


def check(view: FileView) -> Iterator[Violation]:
    """Parts that are frozen by their flags alone, run in train mode, and have, or may have, running statistics."""
    for found in frozen_in_train_mode(view):
        if found.layers.norms is not False and found.flag.node is not None:
            yield _violation(view, found)


def _violation(view: FileView, found: FrozenInTrainMode) -> Violation:
    part, flag, train = shown(found.part), found.flag, found.train
    evidence = [f"line {flag.line} sets requires_grad of {part}" + (f" ({flag.origin})" if flag.origin else "")]
    if train is not None:
        evidence.append(f"line {train.line} puts it into train mode" + (f" ({train.origin})" if train.origin else ""))
    else:
        evidence.append("a new module is in train mode, and nothing calls eval()")
    if found.undone is not None:
        evidence.append(f"the eval() of line {found.undone.line} comes too early: train() undoes it")
    evidence.append(f"line {found.use.line} {_USES.get(found.use.what, 'trains it')}")
    if found.layers.norms is None:
        evidence.append(f"what layers {part} has is not told here; it may have none with statistics")
    if found.layers.drops:
        evidence.append("its dropout is active too")
    edit = eval_below(view, found)
    remedy = f"{part}.eval() after every train()"
    if not edit and not found.is_all and train is not None and train.path == found.part:
        remedy = f"call eval() on each normalization layer of {part} after every train()"
    # Of a whole model there may be a head that trains: which parts are meant is not told here.
    reached = train is not None and train.path != found.part and "." in part
    hold = f"frostline.freeze({part})" if reached else f"frostline.freeze({part.partition('.')[0]}, ...)"
    where = "train mode"
    if train is not None:
        where = f"train() at line {train.line}" if train.what == "mode" else f"the trainer of line {train.line}"
    return Violation(
        flag.node if flag.node is not None else view.tree,
        f"{part} is frozen but in train mode: {where} lets "
        f"{'its normalization statistics' if found.layers.norms else 'normalization statistics in it'} move",
        evidence=tuple(evidence),
        remedy=f"{remedy}, or {hold}" if not edit else f"{remedy}, or frostline.freeze",
        severity=Severity.ERROR if found.is_sure else Severity.WARNING,
        edits=edit,
        safety=Safety.UNSAFE if edit else Safety.MANUAL,
        title=f"Put {part} into eval mode after train()" if edit else "",
        inferred=not found.is_sure,
    )


_USES = {"forward": "runs it so", "backward": "trains what it is in", "step": "trains what it is in"}


RULE = LintRule(
    code="F107",
    what="Follows each part whose `requires_grad` is switched off as a whole, or but for some names, through helpers "
    "and methods, and looks whether it runs in train mode afterwards: by a `train()` that reaches it and no `eval()` "
    "behind that, or because it was made so.",
    why="`requires_grad` is about gradients. In train mode a batch norm goes on writing `running_mean` and "
    "`running_var` in every forward pass, so the frozen part drifts, another head on it gets worse, and "
    "`named_parameters()` shows no difference, because statistics are buffers.",
    example="for p in model.backbone.parameters():\n    p.requires_grad = False\nmodel.train()\nfor x, y in "
    "loader:\n    criterion(model(x), y).backward()\n    optimizer.step()",
    instead="for p in model.backbone.parameters():\n    p.requires_grad = False\nmodel.train()\n"
    "model.backbone.eval()\nfor x, y in loader:\n    criterion(model(x), y).backward()\n    optimizer.step()",
    remedy="Call `eval()` on the part, or on its normalization layers, after every `train()`; or freeze it with "
    "`frostline.freeze`, which keeps its mode, whoever calls `train()`.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the part normalizes with its running statistics from then on, and its dropout is off",
    false_alarms="Statistics that are adapted on purpose, and a model from elsewhere that has no layer with "
    "statistics or looks after its own mode: a warning there, since it cannot be seen. Silent where the part surely "
    "has no such layer, where its class overrides `train()`, for copies that follow another model, and for parts "
    "that are frozen and thawed in turn.",
    source="pytorch#86590, ultralytics#8753, chemprop#952, pytorch/tutorials#449",
    triggers=("requires_grad", "freez", ".train("),
    check=check,
)
