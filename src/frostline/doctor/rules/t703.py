"""T703: statistics of one task reach the next."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from frostline.audit.events import Load, OptimizerLoad, Step
from frostline.audit.seen import ModelSeen, OptimizerSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import biggest, counted, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Models that one line sets back again and again, whose statistics, or whose optimizer, it leaves out."""
    for model in seen.models:
        for starts in _resets(model, seen):
            left = _left(starts, model)
            kept = _kept_optimizer(starts, model, seen)
            if left:
                yield _statistics(starts, left, kept, model)
            elif kept is not None:
                yield _optimizer(starts, kept, model)


def _statistics(starts: list[Load], left: tuple[str, ...], kept: OptimizerSeen | None, model: ModelSeen) -> Found:
    worst = biggest([model.tensors[path] for path in left])
    evidence = [
        f"set back {counted(len(starts), 'time')} by this line, each time followed by optimizer steps",
        f"it brought {starts[0].given} of {starts[0].wanted} tensors; not among them: {some(left)}",
        f"{worst.path} moved, and began the next task as the last one had left it",
    ]
    if kept is not None:
        evidence.append(f"{kept.name} ({kept.type}) went on from task to task too, with its state")
    return Found(
        message=f"{counted(len(starts), 'task')} began with the weights set back and the statistics of the task before",
        model=model.name,
        paths=left,
        evidence=tuple(evidence),
        remedy=f"start = copy.deepcopy({model.name}.state_dict()), with the buffers, "
        f"and {model.name}.load_state_dict(start) before each task",
        severity=Severity.WARNING,
        safety=Safety.UNSAFE,
        place=starts[0].place,
        inferred=True,
    )


def _optimizer(starts: list[Load], kept: OptimizerSeen, model: ModelSeen) -> Found:
    return Found(
        message=f"{model.name} was set back {counted(len(starts), 'time')}, its optimizer with its state was not",
        model=model.name,
        evidence=(
            f"each time followed by steps of {kept.name}",
            f"{kept.name} ({kept.type}) keeps momenta or averages, and goes on with those of the task before",
        ),
        remedy=f"make a new {kept.type} for each task",
        severity=Severity.INFO,
        safety=Safety.UNSAFE,
        place=starts[0].place,
        inferred=True,
    )


def _resets(model: ModelSeen, seen: Seen) -> Iterator[list[Load]]:
    """Loads of a model by one line, at least two, with steps of an optimizer of the model between any two."""
    owners = {
        optimizer.name
        for optimizer in seen.optimizers
        if any(name == model.name for group in optimizer.groups for name, _ in group.paths)
    }
    steps = [step.at for step in seen.of(Step) if step.optimizer in owners]
    loads = seen.of(Load, lambda e: e.model == model.name and not e.path and not e.error and not e.own)
    for place in dict.fromkeys(load.place for load in loads if load.place.is_known):
        starts = [load for load in loads if load.place == place]
        ends = [load.at for load in starts[1:]]
        if len(starts) > 1 and all(
            any(start.at < at < end for at in steps) for start, end in zip(starts, ends, strict=False)
        ):
            yield starts


def _left(starts: list[Load], model: ModelSeen) -> tuple[str, ...]:
    """Statistics that no load set back, that moved, and beside which the scale of the layer was set back."""
    missing = set(starts[0].missing).intersection(*(load.missing for load in starts[1:]))
    return tuple(
        t.path
        for t in model.buffers
        if t.path in missing
        and t.moved
        and t.role.startswith("norm.")
        and any(p.module == t.module and p.path not in missing for p in model.parameters)
    )


def _kept_optimizer(starts: list[Load], model: ModelSeen, seen: Seen) -> OptimizerSeen | None:
    """An optimizer with a state that stepped both before and after every load but the first."""
    if seen.of(OptimizerLoad, lambda e: starts[0].at < e.at):
        return None
    for optimizer in seen.optimizers:
        steps = [step.at for step in seen.of(Step) if step.optimizer == optimizer.name]
        owned = any(name == model.name for group in optimizer.groups for name, _ in group.paths)
        stateful = optimizer.type != "SGD" or any(group.settings.get("momentum") for group in optimizer.groups)
        between = [(start.at, end.at) for start, end in pairwise(starts)]
        if owned and stateful and all(any(a < at < b for at in steps) for a, b in between):
            return optimizer
    return None


def sound(seen: Seen) -> str | None:
    """How many times a model was set back as a whole."""
    whole = [starts for model in seen.models for starts in _resets(model, seen) if not starts[0].missing]
    if not whole or any(True for _ in look(seen)):
        return None
    return f"{counted(sum(map(len, whole)), 'task')} began with weights and statistics set back"


RULE = Rule(
    code="T703",
    what="Looks at loads by one line that come again and again with optimizer steps between them, as they do where "
    "one model is set back before each task: were the running statistics set back with the weights of their layers, "
    "and was the optimizer made anew?",
    why="What is not set back comes from the task before. The first tasks are then learned with other statistics than "
    "the last, results depend on the order of the tasks, and what was learned on one leaks into the score of the "
    "next.",
    evidence="The line, how often it set the model back, and the statistics that it left; from the second task on.",
    example="start = {n: p.detach().clone() for n, p in model.named_parameters()}\nfor task in tasks:\n"
    "    model.load_state_dict(start, strict=False)\n    train(model, task)",
    instead="start = copy.deepcopy(model.state_dict())\nfor task in tasks:\n    model.load_state_dict(start)\n"
    "    train(model, task)",
    remedy="Keep the whole state_dict and load that; make the optimizer in the loop over tasks.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: every task but the first gives other results",
    false_alarms="Statistics that should gather over tasks on purpose. Federated averaging that keeps a whole "
    "normalization layer local is not told, nor weights that are swapped for validation. An optimizer that goes on "
    "alone is information only. Weights that are set back by hand, without `load_state_dict`, are not seen.",
    source="HowToTrainYourMAML#3, cbfinn/maml#16",
    look=look,
    sound=sound,
)
