"""F118: reentrant checkpointing behind a frozen part cuts off the gradients."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import related

_CHECKPOINT = re.compile(r"^torch\.utils\.checkpoint\.checkpoint(_sequential)?$")
_ENABLES = re.compile(r"^(gradient|activation)_checkpointing_enable$")
# What lets the input of a checkpoint require a gradient, so that the reentrant kind works behind a frozen part.
_INPUT_REQUIRES = re.compile(r"enable_input_require_grads|make_inputs_require_grad")


def check(view: FileView) -> Iterator[Violation]:
    """Checkpoints that are reentrant, by default or said so, and switches of transformers that once were."""
    frozen = _frozen(view)
    helped = bool(_INPUT_REQUIRES.search(view.source.text))
    for call in view.nodes(ast.Call):
        if _CHECKPOINT.match(view.name(call.func)):
            yield from _checkpoint(view, call, frozen, helped)
        elif isinstance(call.func, ast.Attribute) and _ENABLES.match(call.func.attr):
            yield from _switch(view, call, call.func, frozen, helped)


def _frozen(view: FileView) -> dict[str, int]:
    """What is frozen anywhere in the file, by its path, and the line."""
    found: dict[str, int] = {}
    for events in (view.walk.events, *(function.events for function in view.walk.functions.values())):
        for event in events:
            is_flag = event.what == "flag" and event.get("value") is False
            if (is_flag or event.what == "hold") and event.path and not event.no_grad:
                found.setdefault(event.path, event.line)
    return found


def _checkpoint(view: FileView, call: ast.Call, frozen: dict[str, int], helped: bool) -> Iterator[Violation]:
    given = next((keyword for keyword in call.keywords if keyword.arg == "use_reentrant"), None)
    if any(keyword.arg is None for keyword in call.keywords):
        return  # use_reentrant may be among them
    cut = bool(frozen) and not helped
    if given is not None:
        if isinstance(given.value, ast.Constant) and given.value.value is True and cut:
            yield _violation(view, call, given.value, frozen)
        return
    line = next(iter(frozen.values()), 0)
    name = view.text(call.func)
    evidence = ["torch up to 2.13 takes True where use_reentrant is not given, with a warning"]
    if cut:
        evidence.append(f"line {line} freezes a part: where no input requires a gradient, all inside gets none")
    yield Violation(
        call,
        f"{name}(...) without use_reentrant is reentrant"
        + (
            ", and this file freezes a part: behind it gradients are cut off"
            if cut
            else ": behind a frozen part it cuts off gradients"
        ),
        evidence=tuple(evidence),
        remedy=f"{name}(..., use_reentrant=False)",
        severity=Severity.ERROR if cut else Severity.WARNING,
        edits=() if _is_open(call) else (view.argument_added(call, "use_reentrant=False"),),
        safety=Safety.UNSAFE,
        title="Pass use_reentrant=False",
    )


def _is_open(call: ast.Call) -> bool:
    """Whether its only argument is a generator without brackets of its own, so that no other may follow."""
    return len(call.args) == 1 and isinstance(call.args[0], ast.GeneratorExp)


def _violation(view: FileView, call: ast.Call, value: ast.expr, frozen: dict[str, int]) -> Violation:
    path, line = next(iter(frozen.items()))
    return Violation(
        call,
        f"{view.text(call.func)}(..., use_reentrant=True) cuts off gradients behind a frozen part",
        evidence=(f"line {line} freezes {path}: where no input requires a gradient, all inside gets none",),
        remedy="use_reentrant=False",
        severity=Severity.WARNING,
        edits=(view.replaced(value, "False"),),
        safety=Safety.UNSAFE,
        title="Pass use_reentrant=False",
        inferred=True,
    )


def _switch(
    view: FileView, call: ast.Call, function: ast.Attribute, frozen: dict[str, int], helped: bool
) -> Iterator[Violation]:
    """``gradient_checkpointing_enable()`` on a model of which the file freezes a part."""
    value = view.value(function.value)
    if helped or call.args or call.keywords or value is None or not value.path or not frozen:
        return
    line = next((line for path, line in frozen.items() if related(path, value.path)), 0)
    if not line:
        return
    argument = f"{function.attr.removesuffix('_enable')}_kwargs"
    receiver = view.text(function.value)
    yield Violation(
        call,
        f"{receiver} is checkpointed behind a frozen part, by default of transformers before 5 the reentrant way",
        evidence=(
            f"line {line} freezes a part of it: where no input requires a gradient, a checkpoint gives none",
            "transformers before 5 take use_reentrant=True where nothing is said, later ones False",
        ),
        remedy=f'{receiver}.{function.attr}({argument}={{"use_reentrant": False}})',
        severity=Severity.WARNING,
        edits=(view.argument_added(call, f'{argument}={{"use_reentrant": False}}'),),
        safety=Safety.UNSAFE,
        title="Say use_reentrant=False",
        inferred=True,
    )


RULE = LintRule(
    code="F118",
    what="Looks at calls of `torch.utils.checkpoint.checkpoint` and `checkpoint_sequential` without `use_reentrant`, "
    "or with True where the file freezes a part; and at `gradient_checkpointing_enable()` without arguments on a "
    "model that is frozen in part.",
    why="The reentrant kind runs its function without gradients and hangs a node on the inputs. Where no input "
    "requires a gradient, because all that comes before is frozen, there is no node: everything inside, adapters "
    "too, gets `None`, with one warning that is easily missed, or `backward()` fails. It is the default of torch up "
    "to 2.13, which says that it will be an error to leave it open.",
    example="model.embed.requires_grad_(False)\nx = torch.utils.checkpoint.checkpoint(model.block, model.embed(ids))",
    instead="model.embed.requires_grad_(False)\n"
    "x = torch.utils.checkpoint.checkpoint(model.block, model.embed(ids), use_reentrant=False)",
    remedy="Pass `use_reentrant=False` (in transformers: `gradient_checkpointing_kwargs`), or let the input require "
    "a gradient (`enable_input_require_grads()`).",
    safety=Safety.UNSAFE,
    how_safe="unsafe: memory, hooks and the order of random numbers differ a little",
    false_alarms="A checkpoint whose inputs always require a gradient works with either kind; where nothing is "
    "frozen in the file, the finding is a warning that the choice is left open. A choice of True that is made in the "
    "call is only reported where the same file freezes something. Silence others with `# noqa: F118`.",
    source="transformers#23170, transformers#26221, transformers PR42494; torch/utils/checkpoint.py of torch 2.13",
    triggers=("checkpoint(", "checkpoint_sequential(", "_checkpointing_enable("),
    check=check,
)
