"""T701: a learner is tested in train mode: statistics of the test tasks are used, and move."""

from __future__ import annotations

import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.layers import LayerBook
from frostline.lint.meta_learning import meta_learning_in
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import related

_TESTS = re.compile(
    r"(^|[_.])(meta_?)?(test|eval|evaluate|evaluation|valid|validate|validation|val)(ing)?(_|$|[A-Z0-9])", re.I
)
_TRAINS = re.compile(r"train", re.I)
# What calls a module, or gives it to somebody who does.
_PASSES = frozenset({"forward", "functional", "unknown"})


def check(view: FileView) -> Iterator[Violation]:
    """`train()` in functions that test, in files that do meta-learning, where no `eval()` follows before the passes."""
    hint = meta_learning_in(view)
    if not hint:
        return
    book = LayerBook(view)
    for flow in view.flows:
        for index, event in enumerate(flow.events):
            if event.what == "mode" and event.get("value") is True and _tests(event.function) and not event.conditions:
                passed = _pass_after(flow, index)
                if passed is not None:
                    yield from _violation(book, flow, index, passed, hint)


def _tests(function: str) -> bool:
    name = function.rpartition(".")[2]
    return bool(_TESTS.search(name)) and not _TRAINS.search(name)


def _pass_after(flow: Flow, index: int) -> Event | None:
    """The first pass in train mode behind the switch, if no other switch comes between, there or before its end."""
    event = flow.events[index]
    passed: Event | None = None
    deep = len(event.via)
    for other in flow.events[index + 1 :]:
        if other.via[:deep] != event.via or (other.function != event.function and len(other.via) == deep):
            break
        if other.what == "mode" and related(other.path, event.path) and other.get("value") is not True:
            return None
        names = other.get("paths", ()) if other.what == "unknown" else (other.path,)
        if passed is None and other.what in _PASSES and any(related(name, event.path) for name in names):
            passed = other
    return passed


def _violation(book: LayerBook, flow: Flow, index: int, passed: Event, hint: str) -> Iterator[Violation]:
    event = flow.events[index]
    layers = book.of_path(flow, event.path, index)
    if event.node is None or (layers.norms is False and layers.drops is False):
        return
    if layers.norms is False:
        effect = "dropout is on"
    else:
        effect = "predictions depend on which examples share a batch, and running statistics take in the test tasks"
    yield Violation(
        event.node,
        f"{shown(event.path)} is tested in train mode: {effect}",
        evidence=(
            f"{event.function} tests, and line {passed.line} runs {shown(event.path)} in train mode",
            f"the file does meta-learning: {hint}",
        ),
        remedy=f"say which statistics are meant: {shown(event.path)}.eval(), statistics of the batch on copies of "
        'the buffers, or a policy: frostline.meta.MAML(..., policy="support")',
        severity=Severity.WARNING,
        inferred=True,
    )


RULE = LintRule(
    code="T701",
    what="Looks for `train()` in functions that test (`test`, `meta_test`, `evaluate`, `validate` ...) in files "
    "that do meta-learning, where the learner is then run and no `eval()` follows.",
    why="Batch norm then uses the statistics of the test examples: predictions depend on which of them share a "
    "batch, and a figure that was measured so cannot be compared with one in which each example was seen "
    "alone. The running statistics take in the test tasks, so that their order matters. It is a choice "
    "that has to be made and said, not a mode that is left over from training.",
    example="import higher\n\ndef test(net, tasks):\n    net.train()\n    for support, query in tasks:\n"
    "        with higher.innerloop_ctx(net, optimizer) as (fnet, steps):\n"
    "            steps.step(criterion(fnet(support.x), support.y))\n"
    "            accuracy(fnet(query.x), query.y)",
    instead="import higher\n\ndef test(net, tasks):\n"
    "    net.eval()  # running statistics, as they were estimated in training\n"
    "    for support, query in tasks:\n"
    "        with higher.innerloop_ctx(net, optimizer) as (fnet, steps):\n"
    "            steps.step(criterion(fnet(support.x), support.y))\n"
    "            accuracy(fnet(query.x), query.y)",
    remedy="Say what the normalization layers do at test time: statistics of the batch on copies of the buffers, "
    "running ones in eval mode, or one of the policies of `frostline.meta`.",
    safety=Safety.MANUAL,
    how_safe="manual: with which statistics a learner is tested is part of the method; in eval mode an inner loop "
    "that was trained with statistics of the batch can blow up",
    false_alarms="A transductive method that says so, and never reads its running statistics: silence it with `# noqa: "
    "T701` and the reason. A switch that depends on a flag, one that only restores the mode after testing, "
    "and networks whose layers can be seen and have neither batch norm nor dropout are let be.",
    source="higher#107, learn2learn#207, metadrop#3",
    triggers=(".train(", ".training"),
    check=check,
)
