"""S453: the learning rate jumps on resuming: the scheduler's state was not loaded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.iterations import STEPS, after, loops_of
from frostline.lint.rule import LintRule, Violation
from frostline.lint.torch_names import hinted

# A scheduler's state that is taken or loaded in a way that is not followed.
_BY_HAND = re.compile(r"sched\w*(\[[^\]]*\]|\(\))?\.(load_state_dict|__dict__|last_epoch|_step_count)|last_epoch\s*=")


def check(view: FileView) -> Iterator[Violation]:
    """Loads of an optimizer's state in code that goes on with a scheduler (a scaler) to which nothing is loaded."""
    for flow in view.flows:
        loads = [e for e in flow.of("load") if _kind(e) == "optimizer" and e.node is not None and _resumes(e)]
        if not loads or not flow.is_complete:
            continue
        whole = _class_flows(view, flow)
        for load in loads:
            yield from _scheduler(view, flow, whole, load)
            yield from _scaler(view, whole, load)


def _resumes(load: Event) -> bool:
    """Whether a state is loaded that an earlier run has left: once, and none that was taken in this one."""
    source = load.get("source")
    return not load.origin and not loops_of(load) and not (source is not None and source.kind == "state_dict")


def _class_flows(view: FileView, flow: Flow) -> list[Flow]:
    """What the same object does elsewhere: the flows of its class, else this flow only."""
    return [each for each in view.flows if each.owner == flow.owner] if flow.owner else [flow]


def _scheduler(view: FileView, flow: Flow, whole: list[Flow], load: Event) -> Iterator[Violation]:
    made = [e for each in whole for e in each.of("scheduler") if e.get("of") == load.path]
    if not made or _is_told_where(made):
        return
    paths = {event.path for event in made}
    if "" in paths:  # made where it is returned: the one that is stepped and that nobody else made
        others = {e.path for each in whole for e in each.of("scheduler") if e.get("of") != load.path}
        stepped_on = flow.of("scheduler_step") if flow.owner else list(after(flow, load, "scheduler_step"))
        paths = {e.path for e in stepped_on} - others
    stepped = [e for each in whole for e in each.of("scheduler_step") if e.path in paths]
    if not stepped or any(isinstance(e.node, ast.Call) and e.node.args for e in stepped):
        return  # given an epoch, it finds its place by itself; given a metric, it decides anew
    if _is_loaded(whole, paths, "scheduler") or _is_handed_on(whole, paths) or _is_wound(flow, load, paths):
        return
    if not flow.owner and not any(e.what in STEPS for e in after(flow, load, *STEPS)):
        return  # nothing is trained after it
    if _BY_HAND.search(view.source.text if flow.owner else _own_text(view, load)):
        return
    scheduler = made[-1]
    place = scheduler.origin or f"line {scheduler.line}"
    name = scheduler.path or stepped[0].path
    evidence = [f"{place} makes {name}, which begins anew: nothing is loaded into it"]
    evidence += [f"line {e.line} saves without it" for e in _saves(whole) if not e.origin][:1]
    yield Violation(
        load.node or view.tree,
        f"{load.path} is resumed without the state of {name}: its schedule begins anew in the middle of the run",
        evidence=tuple(evidence),
        remedy=f'{name}.load_state_dict(checkpoint["scheduler"]) here, and its state_dict() into the checkpoint',
        severity=Severity.WARNING,
    )


def _scaler(view: FileView, whole: list[Flow], load: Event) -> Iterator[Violation]:
    """A gradient scaler that begins anew: a few steps are skipped until its scale fits again."""
    steps = [e for flow in whole for e in flow.of("scaler_step") if e.path == load.path and e.get("scaler")]
    if not steps or "scaler.load_state_dict" in view.source.text or "caler.state_dict" in view.source.text:
        return
    paths = {e.get("scaler") for e in steps}
    if _is_loaded(whole, paths, "scaler") or _is_handed_on(whole, paths) or not _saves(whole):
        return
    yield Violation(
        load.node or view.tree,
        f"{load.path} is resumed without the state of {steps[0].get('scaler')}: its scale begins anew",
        evidence=(f"line {steps[0].line} steps with a gradient scaler whose state is neither saved nor loaded",),
        remedy=f'{steps[0].get("scaler")}.load_state_dict(checkpoint["scaler"]) here',
        severity=Severity.INFO,
        inferred=True,
    )


def _kind(event: Event) -> str:
    """What is loaded into or asked for its state: ``optimizer``, ``scheduler``, ``scaler``, ``module``."""
    return hinted(event.path.rpartition(".")[2]) or str(event.get("of"))


def _is_told_where(made: list[Event]) -> bool:
    """Whether a scheduler is told at which epoch it begins."""
    for event in made:
        node = event.node
        if isinstance(node, ast.Call) and any(k.arg in {"last_epoch", None} for k in node.keywords):
            return True
        if not str(event.get("cls")).startswith(("torch.optim.", "transformers.")):
            return True
    return False


def _is_loaded(whole: list[Flow], paths: set[str], kind: str) -> bool:
    """Whether a state is loaded into one of them, or into something of their kind."""
    return any(e.path in paths or _kind(e) == kind for flow in whole for e in flow.of("load"))


def _is_handed_on(whole: list[Flow], paths: set[str]) -> bool:
    """Whether a function that nobody knows is given one of them, or prepares it: it may load."""
    return any(paths & set(e.get("paths", ())) for flow in whole for e in flow.of("unknown")) or any(
        e.path in paths for flow in whole for e in flow.of("wrap")
    )


def _is_wound(flow: Flow, load: Event, paths: set[str]) -> bool:
    """Whether the scheduler is stepped forward to where the run was left, before anything is trained."""
    for event in after(flow, load, "scheduler_step", *STEPS):
        if event.what != "scheduler_step":
            return False
        if event.path in paths:
            return not loops_of(event) or event.loops != load.loops
    return False


def _own_text(view: FileView, load: Event) -> str:
    """The text of the function that loads, or of the file where that is none."""
    function = view.walk.functions.get(load.function)
    return view.text(function.node) if function is not None else view.source.text


def _saves(whole: list[Flow]) -> list[Event]:
    """Saves that hold the state of an optimizer and none of a scheduler or scaler."""
    found: list[Event] = []
    for flow in whole:
        states = flow.of("state_dict")
        for save in flow.of("save"):
            own = [e for e in states if e.function == save.function]
            kinds = {_kind(e) for e in own}
            if "optimizer" in kinds and not kinds & {"scheduler", "scaler"}:
                found.append(save)
    return found


RULE = LintRule(
    code="S453",
    what="Looks for `optimizer.load_state_dict(...)` in code that makes a scheduler for that optimizer and steps it, "
    "and never loads anything into it; the same for a gradient scaler, as information.",
    why="The rate is in the optimizer's state, the position in the schedule is not. A scheduler that is not loaded "
    "begins from its beginning: the warm-up is run again, or a rate that had decayed jumps back, and what was "
    "learned at the small rate is lost.",
    example="scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)\ncheckpoint = torch.load(path)\n"
    'model.load_state_dict(checkpoint["model"])\noptimizer.load_state_dict(checkpoint["optimizer"])\n'
    "for epoch in range(epochs):\n    for x, y in loader:\n        optimizer.zero_grad()\n"
    "        criterion(model(x), y).backward()\n        optimizer.step()\n    scheduler.step()",
    instead="scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)\ncheckpoint = torch.load(path)\n"
    'model.load_state_dict(checkpoint["model"])\noptimizer.load_state_dict(checkpoint["optimizer"])\n'
    'scheduler.load_state_dict(checkpoint["scheduler"])\n'
    "for epoch in range(epochs):\n    for x, y in loader:\n        optimizer.zero_grad()\n"
    "        criterion(model(x), y).backward()\n        optimizer.step()\n    scheduler.step()",
    remedy="Save and load `scheduler.state_dict()` (and that of a gradient scaler) with the optimizer's.",
    safety=Safety.MANUAL,
    how_safe="manual: the checkpoint has to hold the state first, and later rates become other ones",
    false_alarms="A new schedule on purpose, on top of an old optimizer's momentum. Silent: schedulers that are told "
    "where to begin (`last_epoch=`), are stepped with an epoch or a metric, are wound forward, or are handed to a "
    "function that may load them.",
    source="yolov5#292, pytorch#60265, the_well#77",
    triggers=("load_state_dict",),
    check=check,
)
