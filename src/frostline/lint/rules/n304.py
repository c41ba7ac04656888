"""N304: averaged weights were used with statistics that do not belong to them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.layers import LayerBook
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import is_below

_BUFFERS_PLACE = 4
# A function by such a name uses the model; one by another name may have estimated its statistics.
_USES = re.compile(r"(^|[._])(eval|valid|test|predict|infer|score|accuracy|export)", re.I)
_ESTIMATES = re.compile(r"bn|batch_?norm|recalibrat|stat", re.I)


def check(view: FileView) -> Iterator[Violation]:
    """Averaged models that are filled, and used with the statistics of the last weights."""
    book = LayerBook(view)
    for flow in view.flows:
        if not flow.is_complete:
            continue
        for index, made in enumerate(flow.events):
            if made.what == "wrap" and made.get("how") == "averaged" and made.path:
                yield from _of(view, book, flow, index)


def _of(view: FileView, book: LayerBook, flow: Flow, index: int) -> Iterator[Violation]:
    made = flow.events[index]
    call = made.node
    if made.origin or not isinstance(call, ast.Call) or _keeps_buffers(call) or _estimates(view, flow):
        return
    later = flow.events[index + 1 :]
    fills = [i for i, event in enumerate(later) if _fills(event, made.path)]
    if not fills or any(_may_estimate(event, made.path) for event in later):
        return
    use = next((event for event in later[fills[0] + 1 :] if _uses(event, made.path) and event.node is not None), None)
    if use is None or use.node is None:
        return
    norms = book.of_path(flow, str(made.get("of", "")), index).norms
    if norms is False:
        return
    moving = any(keyword.arg in {"avg_fn", "multi_avg_fn"} for keyword in call.keywords) or len(call.args) > 2
    saved = use.what in {"save", "state_dict"}
    severity = Severity.INFO if moving else Severity.ERROR if norms else Severity.WARNING
    yield Violation(
        use.node,
        f"{made.path} is {'saved' if saved else 'used'} with the statistics of the last weights, not of its average",
        evidence=(
            f"line {made.line} makes it, line {later[fills[0]].line} averages into it",
            "no update_bn comes between: running statistics are copied, not averaged",
            *(() if norms else (f"whether {made.get('of')} has batch normalization is not known",)),
        ),
        remedy=f"torch.optim.swa_utils.update_bn(train_loader, {made.path}) before it is used",
        severity=severity,
        inferred=not norms,
    )


def _keeps_buffers(call: ast.Call) -> bool:
    given = next((keyword.value for keyword in call.keywords if keyword.arg == "use_buffers"), None)
    given = given or (call.args[_BUFFERS_PLACE] if len(call.args) > _BUFFERS_PLACE else None)
    if any(keyword.arg is None for keyword in call.keywords):
        return True
    return given is not None and not (isinstance(given, ast.Constant) and given.value is False)


def _estimates(view: FileView, flow: Flow) -> bool:
    """Whether another method of the class estimates statistics; in what the flow calls, they are events of it."""
    return bool(flow.owner) and any(
        re.search(r"update_bn|bn_update|update_batch_?norm|recalibrate", view.text(call.func))
        and view.function(call).startswith(f"{flow.owner}.")
        for call in view.nodes(ast.Call)
    )


def _fills(event: Event, path: str) -> bool:
    if event.what == "average":
        return event.path == path
    # In a function that is given both, nothing but the method tells which is the average.
    return event.what == "unknown" and str(event.get("name", "")).endswith(".update_parameters")


def _may_estimate(event: Event, path: str) -> bool:
    if event.what == "update_bn":
        return True
    if event.what == "mode" and is_below(event.path, path) and event.get("value") is not False:
        return True  # passes in train mode may follow, which make statistics
    if event.what == "unknown" and any(is_below(each, path) for each in event.get("paths", ())):
        name = str(event.get("name", ""))
        return not _USES.search(name) or bool(_ESTIMATES.search(name))
    return False


def _uses(event: Event, path: str) -> bool:
    if event.what in {"forward", "save", "state_dict"}:
        return is_below(event.path, path)
    return event.what == "unknown" and any(is_below(each, path) for each in event.get("paths", ()))


RULE = LintRule(
    code="N304",
    what="Looks for a `torch.optim.swa_utils.AveragedModel` without `use_buffers=True` that is averaged into, and "
    "then called, evaluated or saved, while nothing estimates statistics for it.",
    why="The average of many weights gives activations that none of them gave. Running statistics that were "
    "gathered by the last weights do not fit: accuracy can fall to chance although the averaged weights are better.",
    example="model = torchvision.models.resnet18()\nswa_model = torch.optim.swa_utils.AveragedModel(model)\nfor "
    "epoch in range(9):\n    train_epoch(model)\n    swa_model.update_parameters(model)\nswa_model.eval()\n"
    "validate(swa_model)",
    instead="model = torchvision.models.resnet18()\nswa_model = torch.optim.swa_utils.AveragedModel(model)\nfor "
    "epoch in range(9):\n    train_epoch(model)\n    swa_model.update_parameters(model)\n"
    "torch.optim.swa_utils.update_bn(loader, swa_model)\nswa_model.eval()\nvalidate(swa_model)",
    remedy="Call `torch.optim.swa_utils.update_bn(train_loader, swa_model)`, or `frostline.recalibrate`, before use.",
    safety=Safety.MANUAL,
    how_safe="manual: it needs training data, and which that is only the user knows",
    false_alarms="An exponential moving average stays close to the last weights, so that their statistics nearly "
    "fit: an info. A model that surely has no batch normalization is let be; one of which that is not known gives a "
    "warning.",
    source="Izmailov et al. 2018 (arXiv:1803.05407) section 3; composer#624, timgaripov/swa#7",
    triggers=("AveragedModel",),
    check=check,
)
