"""O411: clipping counts gradients that no optimizer uses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.layers import LayerBook
from frostline.lint.model_parts import parts_of
from frostline.lint.ownership import Owner, Ownership, is_required_only
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import PARAMETERS, is_below, related

_FREEZES = re.compile(r"freez|froze|grad|trainable|prepare|peft|lora|prompt", re.I)


def check(view: FileView) -> Iterator[Violation]:
    """Calls that clip all of a model of which the optimizers have a part, where the rest is trainable."""
    book = LayerBook(view)
    for flow in view.flows:
        clips = flow.of("clip")
        if not clips or not flow.of("optimizer"):
            continue
        owned = Ownership(flow)
        if owned.steps_unseen() or any(not owner.is_known for owner in owned.owners):
            continue
        for clip in clips:
            yield from _counts_more(view, flow, owned, clip, book)


def _counts_more(view: FileView, flow: Flow, owned: Ownership, clip: Event, book: LayerBook) -> Iterator[Violation]:
    sources = clip.get("sources", [])
    if len(sources) != 1 or sources[0].kind not in PARAMETERS or sources[0].filtered or not sources[0].path:
        return
    model = owned.path(sources[0].path)
    mine = [owner for owner in owned.owners if any(related(s.path, model) for s in owner.sources)]
    given = [s for owner in mine for s in owner.sources if related(s.path, model)]
    if not given or clip.node is None or _only_measures(clip) or _is_frozen_somewhere(flow, owned, model):
        return
    if any(
        is_below(model, s.path) and (not s.filtered or is_required_only(s) or "name" not in str(s.tests)) for s in given
    ):
        return  # it may have all of it
    if any(s.kind == "parameter" or (s.filtered and s.path == model) for s in given):
        return
    trained = list(dict.fromkeys(s.path for s in given))
    value = book.value_at(flow, model)
    parts = parts_of(value, view.walk) if value is not None else None
    left = [p for p in parts if not any(related(f"{model}.{p}", path) for path in trained)] if parts is not None else []
    if (parts is not None and not left) or (parts is None and len(trained) != 1):
        return
    rest = ", ".join(f"{shown(model)}.{part}" for part in left) or f"the rest of {shown(model)}"
    owner = mine[-1]
    yield Violation(
        clip.node,
        f"clipping counts the gradients of {rest}, which no optimizer has",
        evidence=(
            f"line {owner.event.line} makes {owner.name} from {owner.given}",
            *((f"it stands at {clip.origin}",) if clip.origin else ()),
            f"{owner.name}.zero_grad() does not clear them: they pile up, and clipping gets harder from step to step",
        ),
        remedy=f"clip {shown(trained[0])}.parameters()"
        if len(trained) == 1
        else f'clip [p for g in {owner.name}.param_groups for p in g["params"]]',
        severity=Severity.WARNING,
        edits=_edits(view, clip, owned, model, trained, owner),
        safety=Safety.UNSAFE,
        title="Clip what the optimizer has",
        inferred=parts is None,
    )


def _only_measures(clip: Event) -> bool:
    """Whether the norm that is allowed is infinite: nothing is scaled."""
    call = clip.node
    if not isinstance(call, ast.Call):
        return False
    given = [*call.args[1:2], *(k.value for k in call.keywords if k.arg in {"max_norm", "clip_value"})]
    return any("inf" in ast.unparse(each) for each in given)


def _is_frozen_somewhere(flow: Flow, owned: Ownership, model: str) -> bool:
    """Whether a part of a model is frozen in the flow, or may be by something unknown, or runs without gradients."""
    for event in flow.events:
        path = owned.path(event.path)
        if event.what in {"flag", "hold"} and event.get("value") is not True and related(path, model):
            return True
        if event.what == "forward" and event.no_grad and path != model and is_below(path, model):
            return True
        if event.what == "unknown" and _FREEZES.search(str(event.get("name", ""))):
            return True
    return False


def _edits(
    view: FileView, clip: Event, owned: Ownership, model: str, trained: list[str], owner: Owner
) -> tuple[Edit, ...]:
    """The part in the place of the model, where the call names the model plainly."""
    call = clip.node
    if clip.origin or not isinstance(call, ast.Call) or not call.args or len(trained) != 1:
        return ()
    given = call.args[0]
    if not isinstance(given, ast.Call) or not isinstance(given.func, ast.Attribute) or given.func.attr != "parameters":
        return ()
    value = view.value(given.func.value)
    if value is None or owned.path(value.path) != model or not trained[0].startswith(f"{model}."):
        return ()
    return (view.behind(given.func.value, trained[0][len(model) :]),) if owner.event.path else ()


RULE = LintRule(
    code="O411",
    what="Looks for `clip_grad_norm_` and `clip_grad_value_` over all parameters of a model of which the "
    "optimizers have only a part, where nothing freezes the rest.",
    why="The norm is that of all gradients that are given. What no optimizer has is not cleared by "
    "`optimizer.zero_grad()` either: its gradients pile up, their norm takes over, and the gradients that are "
    "used are scaled down more and more. Training slows to a halt, and the log shows a growing norm.",
    example="optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)\nfor x, y in loader:\n"
    "    optimizer.zero_grad()\n    criterion(model(x), y).backward()\n"
    "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n    optimizer.step()",
    instead="optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)\nfor x, y in loader:\n"
    "    optimizer.zero_grad()\n    criterion(model(x), y).backward()\n"
    "    torch.nn.utils.clip_grad_norm_(model.head.parameters(), 1.0)\n    optimizer.step()",
    remedy="Clip what the optimizer has, and freeze what it does not have.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: less is clipped, and steps become larger",
    false_alarms="A model whose rest was frozen elsewhere (when it was loaded, say) has no gradients there, and "
    "nothing is counted. Where a flag is set, a function by a name such as `freeze` is called, a part runs under "
    "`no_grad`, or an optimizer steps that was made elsewhere, the rule is silent; so it is for an infinite "
    "norm, which only measures.",
    source="none found",
    triggers=("clip_grad_",),
    check=check,
)
