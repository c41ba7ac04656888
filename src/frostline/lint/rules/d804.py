"""D804: each process keeps the running statistics of its own data."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.layers import LayerBook
from frostline.lint.rule import LintRule, Violation
from frostline.lint.wrapping import Wrapping, wrappings

_OPTIONS = ("broadcast_buffers", "forward_sync_buffers")
# Whoever names one of these makes the statistics agree, or has none that move.
_MERGED = re.compile(r"sync_?batch_?norm|sync_?bn|distribute_bn|allreduce_norm|FrozenBatchNorm|reduce\w*buffers", re.I)
_AVERAGED = re.compile(r"(all_reduce|broadcast|all_gather)\w*\(", re.I)
_STATISTICS = re.compile(r"running_(mean|var)|buffers\(")


def check(view: FileView) -> Iterator[Violation]:
    """Wrappers with `broadcast_buffers=False` around models that have, or may have, batch normalization."""
    text = view.source.text
    if _MERGED.search(text) or (_AVERAGED.search(text) and _STATISTICS.search(text)):
        return
    book = LayerBook(view)
    for flow in view.flows:
        for wrapping in wrappings(flow):
            option = next((name for name in _OPTIONS if wrapping.event.get("options", {}).get(name) is False), "")
            if option:
                yield from _violation(view, book, wrapping, option)


def _violation(view: FileView, book: LayerBook, wrapping: Wrapping, option: str) -> Iterator[Violation]:
    event = wrapping.event
    has = book.of_path(wrapping.flow, event.get("of") or event.path, wrapping.index + 1).norms
    used = _used(wrapping)
    if event.node is None or has is False or (has is None and not used):
        return
    call = event.node
    edits: tuple[Edit, ...] = ()
    if isinstance(call, ast.Call) and not event.origin:
        edits = tuple(view.replaced(each.value, "True") for each in call.keywords if each.arg == option)
    model = shown(event.get("of")) or "the model"
    evidence = (f"{model} has batch normalization" if has else f"{model} may have batch normalization", *used)
    yield Violation(
        call,
        f"{option}=False: each process keeps running statistics of its own data",
        evidence=evidence,
        remedy=f"nn.SyncBatchNorm.convert_sync_batchnorm({shown(event.get('of')) or 'model'}) before wrapping, or "
        f"{option}=True, or average the buffers before evaluating and saving",
        severity=Severity.WARNING if has else Severity.INFO,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title=f"Set {option}=True",
        inferred=has is None or not used,
    )


def _used(wrapping: Wrapping) -> tuple[str, ...]:
    """What uses the statistics later: a save or a switch to eval mode, a line."""
    for _, event in wrapping.later():
        if wrapping.inside(event.path) is None:
            continue
        if event.what in {"save", "state_dict"}:
            return (f"line {event.line} saves those of one process",)
        if event.what == "mode" and event.get("value") is False:
            return (f"line {event.line} evaluates with them",)
    return ()


RULE = LintRule(
    code="D804",
    what="Looks for `DistributedDataParallel(..., broadcast_buffers=False)`, newer "
    "`forward_sync_buffers=False`, around a model with batch normalization, in a file that neither "
    "synchronizes these layers nor averages their buffers.",
    why="Every process then has statistics of its own data. Each evaluates another network, the scores of the "
    "processes differ, and the file that the first process writes holds the statistics of its share of the "
    "data.",
    example="net = torchvision.models.resnet50()\n"
    "model = torch.nn.parallel.DistributedDataParallel(net, broadcast_buffers=False)\nmodel.train()\n"
    "for x, y in loader:\n    criterion(model(x), y).backward()\n    optimizer.step()\n"
    "torch.save(model.module.state_dict(), 'model.pt')",
    instead="net = nn.SyncBatchNorm.convert_sync_batchnorm(torchvision.models.resnet50())\n"
    "model = torch.nn.parallel.DistributedDataParallel(net)\nmodel.train()\nfor x, y in loader:\n"
    "    criterion(model(x), y).backward()\n    optimizer.step()\ntorch.save(model.module.state_dict(), 'model.pt')",
    remedy="Synchronize the layers, leave `broadcast_buffers` on, or average the buffers before evaluating and saving.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: buffers of the first process are then handed to all before each pass, and the layers have "
    "other statistics",
    false_alarms="Statistics that another file averages before they are used, and layers that are kept in eval mode. "
    "Models without batch normalization are let be as far as their classes can be seen; of one that cannot "
    "be seen it is information only, and only where it is saved or evaluated.",
    source="pytorch#13711, pytorch#30718, mmdetection#2539, mmdetection PR4582, timm#110, fvcore#152",
    triggers=("broadcast_buffers", "forward_sync_buffers"),
    check=check,
)
