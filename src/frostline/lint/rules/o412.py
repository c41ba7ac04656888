"""O412: trainable parameters are in no optimizer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.findings import Safety, Severity
from frostline.lint.events import Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.layers import LayerBook
from frostline.lint.model_parts import names_of, parts_of
from frostline.lint.name_tests import passes, texts_in
from frostline.lint.ownership import Owner, Ownership
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import PARAMETERS, Value, is_below, related

# Parts by these names are left out on purpose more often than not: they follow, judge or measure.
_NOT_MEANT = re.compile(
    r"ema|teacher|target|momentum|frozen|_old$|^old_|^ref|loss|criterion|metric|lpips|perceptual", re.I
)
# A name that holds nothing that anybody looks for.
_NOBODY = "~.~"


@dataclass(frozen=True)
class _Given:
    """What the optimizers of a flow were given of one model."""

    model: str
    owners: tuple[Owner, ...]
    sources: tuple[Value, ...]


def check(view: FileView) -> Iterator[Violation]:
    """Optimizers that are given parts of a model, one by one or by name, and one too few or one twice."""
    book = LayerBook(view)
    for flow in view.flows:
        if not flow.of("optimizer"):
            continue
        owned = Ownership(flow)
        if owned.steps_unseen() or any(not owner.is_known for owner in owned.owners):
            continue
        for given in _by_model(owned):
            value = book.value_at(flow, given.model)
            parts = parts_of(value, view.walk) if value is not None else None
            if parts:
                yield from _forgotten(view, flow, owned, given, parts)
            else:
                yield from _by_name_alone(flow, owned, given)


def _by_model(owned: Ownership) -> Iterator[_Given]:
    """The models that are given in more than one part, with all that is given of them."""
    paths = {s.path for owner in owned.owners for s in owner.sources}
    models = {path for path in paths if any(s.filtered for o in owned.owners for s in o.sources if s.path == path)}
    models |= {path.rpartition(".")[0] for path in paths if "." in path}
    # The outermost: a model that lies in another one is a part of that.
    for model in sorted(m for m in models if m and not any(is_below(m, other) and m != other for other in models)):
        owners = tuple(o for o in owned.owners if any(related(s.path, model) for s in o.sources))
        sources = tuple(s for o in owners for s in o.sources if related(s.path, model))
        if len({(s.path, s.tests) for s in sources}) > 1:
            yield _Given(model, owners, sources)


def _forgotten(
    view: FileView, flow: Flow, owned: Ownership, given: _Given, parts: dict[str, Value]
) -> Iterator[Violation]:
    if any(is_below(given.model, s.path) and not s.filtered for s in given.sources):
        return
    missing: list[str] = []
    for part, value in parts.items():
        path = f"{given.model}.{part}"
        if _NOT_MEANT.search(part) or value.copy_of or _is_frozen(flow, owned, path) or _is_given_elsewhere(view, part):
            continue
        names = names_of(part, value, view.walk)
        if not any(_may_have(source, path, given.model, names) for source in given.sources):
            missing.append(path)
    if len(missing) == len(parts):
        return  # what is given has other names than what is known of the model
    owner = given.owners[0]
    if missing and owner.event.node is not None:
        verb = "is" if len(missing) == 1 else "are"
        yield Violation(
            owner.event.node,
            f"{', '.join(map(shown, missing))} {verb} in no group of {owner.name} and in no other optimizer",
            evidence=(
                f"it is given {_listed(given)}",
                *((f"it stands at {owner.event.origin}",) if owner.event.origin else ()),
                f"{', '.join(path.rpartition('.')[2] for path in missing)}: in the model, with parameters, not frozen",
            ),
            remedy="a group with " + " and ".join(f"{shown(path)}.parameters()" for path in missing[:2])
            if len(missing) < 3
            else "a last group with all that is in no other one",
            severity=Severity.WARNING,
            inferred=True,
        )
        return
    yield from _twice(view, given, parts)


def _twice(view: FileView, given: _Given, parts: dict[str, Value]) -> Iterator[Violation]:
    """A part that two filters of one optimizer let through: torch refuses to have it twice."""
    for owner in given.owners:
        filtered = [s for s in owner.sources if s.path == given.model and s.filtered and s.tests]
        for part, value in parts.items():
            names = names_of(part, value, view.walk)
            having = [s for s in filtered if all(passes(s.tests, name) is True for name in names)]
            tests = list(dict.fromkeys(" and ".join(s.tests) for s in having))
            if len(tests) > 1 and owner.event.node is not None:
                yield Violation(
                    owner.event.node,
                    f"{shown(given.model)}.{part} is given to {owner.name} twice: "
                    f"{tests[0]} and {tests[1]} are both true of it",
                    evidence=(f"{names[0]} passes both",),
                    remedy="let the second filter be the opposite of the first",
                    severity=Severity.WARNING,
                    inferred=True,
                )
                return


def _may_have(source: Value, path: str, model: str, names: tuple[str, ...]) -> bool:
    if source.path != model and related(source.path, path):
        return True
    if source.path != model and is_below(model, source.path):
        return True
    if source.path != model:
        return False
    return not source.filtered or not source.tests or any(passes(source.tests, name) is not False for name in names)


def _is_frozen(flow: Flow, owned: Ownership, path: str) -> bool:
    """Whether a part is frozen, or may be, or is put out of use without gradients."""
    for event in flow.events:
        if event.what in {"flag", "hold"} and event.get("value") is not True and related(owned.path(event.path), path):
            return True
        if event.what == "forward" and event.no_grad and is_below(owned.path(event.path), path):
            return True
        if event.what == "unknown" and re.search(r"freez|lora|peft", str(event.get("name", "")), re.I):
            return True
    return False


def _is_given_elsewhere(view: FileView, part: str) -> bool:
    """Whether any optimizer of the file is given something by the name of the part."""
    walk = view.walk
    events = [*walk.events, *(e for function in walk.functions.values() for e in function.events)]
    return any(
        part in re.split(r"[.\[\]]", source.path)
        for event in events
        if event.what in {"optimizer", "add_group"}
        for source in event.get("sources", ())
    )


def _listed(given: _Given) -> str:
    texts = [
        f"{shown(s.path)} where {' and '.join(s.tests)}" if s.filtered and s.tests else shown(s.path)
        for s in given.sources
    ]
    return ", ".join(dict.fromkeys(texts))[:160]


def _by_name_alone(flow: Flow, owned: Ownership, given: _Given) -> Iterator[Violation]:
    """Filters by name of which none takes the rest, over a model of which nobody here knows what it has."""
    owner = given.owners[0]
    tests = [s.tests for s in given.sources]
    if (
        len(given.owners) != 1
        or owner.event.node is None
        or len(set(tests)) < 2
        or _is_frozen(flow, owned, given.model)
    ):
        return
    if any(s.path != given.model or not s.filtered or s.kind not in PARAMETERS for s in given.sources):
        return
    if any(passes(each, _NOBODY) is not False for each in tests):
        return
    texts = list(dict.fromkeys(text for each in tests for text in texts_in(each)))
    if len(texts) < 2 or not all(texts_in(each) for each in tests) or _are_all_forms(texts):
        return
    yield Violation(
        owner.event.node,
        f"a parameter of {shown(given.model)} with neither {' nor '.join(map(repr, texts[:4]))} in its name "
        f"is in no group of {owner.name}",
        evidence=(f"it is given {_listed(given)}",),
        remedy=f"let one of the filters be the opposite of the others: {texts[-1]!r} not in name",
        severity=Severity.INFO,
        inferred=True,
    )


def _are_all_forms(texts: list[str]) -> bool:
    """Whether the texts are the names of tensors, of which layers have no others."""
    return {"weight", "bias"} <= {text.strip(".") for text in texts}


RULE = LintRule(
    code="O412",
    what="Looks for optimizers that are given several parts of a model, one by one or by filters on names, and "
    "leave out a part that the class of the model has (in the files that are linted, or a well-known net of "
    "torchvision), that has parameters and that is not frozen. Filters by name over other models are told where "
    "none of them takes the rest, and where two take the same.",
    why="A list of parameters by name or by part is easily incomplete: the stem, the pooler, a norm layer, the "
    "new classifier. What is missing stays at its start, random or pretrained, and the rest adapts to it.",
    example="model = torchvision.models.resnet18()\noptimizer = torch.optim.SGD([\n"
    '    {"params": [p for n, p in model.named_parameters() if n.startswith("layer")], "lr": 0.001},\n'
    '    {"params": model.fc.parameters(), "lr": 0.01},\n])',
    instead="model = torchvision.models.resnet18()\noptimizer = torch.optim.SGD([\n"
    '    {"params": [p for n, p in model.named_parameters() if not n.startswith("fc.")], "lr": 0.001},\n'
    '    {"params": model.fc.parameters(), "lr": 0.01},\n])',
    remedy="Let the last group be what is in no other one, or make groups with `frostline.param_groups`, which "
    "puts each parameter in exactly one.",
    safety=Safety.MANUAL,
    how_safe="manual: the part begins to train, at a learning rate that somebody has to choose",
    false_alarms="Leaving a part out is also a way to keep it fixed. One part alone in the optimizer (a linear "
    "probe) is taken for that, as are parts that are frozen, run under `no_grad`, or have names such as "
    "`teacher` or `ema`. Otherwise call `requires_grad_(False)` on what is meant to be fixed.",
    source="mmf PR620, HVPNeT#5",
    triggers=("optim", "Optim", "SGD", "Adam"),
    check=check,
)
