"""C502: loading a checkpoint changed nothing."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import Load
from frostline.audit.places import Place
from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import arrived, counted
from frostline.findings import Safety, Severity
from frostline.state.names import join


def look(seen: Seen) -> Iterator[Found]:
    """Loads of a module's own memory, and loads of values that it already had; one finding for each line."""
    told: set[tuple[str, str, Place]] = set()
    loads = seen.of(Load)
    # What one line loads again and again, a start or a best state, may once be what is there.
    useful = {load.place for load in loads if load.changed and not load.own}
    for load in loads:
        site = (load.model, load.path, load.place)
        came = arrived(load)
        if load.changed != 0 or load.error or not came or site in told or load.place in useful:
            continue
        if load.step:
            continue  # a best state that is the last one is what it should be; one without a copy is C503's to tell
        told.add(site)
        owner = join(load.model, load.path)
        model = seen.model(load.model)
        if load.own:
            evidence = [
                f"0 of {counted(came, 'tensor')} have other bytes than before",
                f"the tensors that came are the memory of {owner} itself: the result of its own state_dict()",
                "what was merged into it by name matched nothing, or replaced nothing",
            ]
            message = f"loading {counted(came, 'tensor')} into {owner} changed none: they are its own"
        else:
            evidence = [f"0 of {counted(came, 'tensor')} have other bytes than before"]
            message = f"loading {counted(came, 'tensor')} into {owner} changed none: it had these values already"
        yield Found(
            message=message,
            model=load.model,
            paths=tuple(t.path for t in model.below(load.path)) if model else (),
            evidence=tuple(evidence),
            remedy=f"frostline.plan_load({owner}, checkpoint).apply(), which says of each tensor where it comes from"
            if load.own
            else "",
            severity=Severity.WARNING if load.own else Severity.INFO,
            safety=Safety.MANUAL,
            place=load.place,
        )


def sound(seen: Seen) -> str | None:
    """How many tensors got other values by loading."""
    loads = [load for load in seen.of(Load) if load.wanted and not load.error and load.changed is not None]
    if not loads or any(load.changed == 0 for load in loads):
        return None
    changed = sum(load.changed or 0 for load in loads)
    return f"{counted(len(loads), 'load_state_dict call')} changed {counted(changed, 'tensor')}"


RULE = Rule(
    code="C502",
    what="Compares the bytes of every tensor before and after each `load_state_dict`, and the memory of what came "
    "with the module's own.",
    why="The usual idiom takes the model's `state_dict()`, merges those entries of a checkpoint whose names match, "
    "and loads the result. Where no name matches, the model is given its own tensors: every key is there, strict "
    "loading is content, and the backbone stays random.",
    evidence="How many tensors have other bytes after the call, and whether the dictionary shares memory with the "
    "model.",
    example="own = model.state_dict()\nown.update({k: v for k, v in pretrained.items() if k in own})\n"
    "model.load_state_dict(own)",
    instead='pretrained = {k.removeprefix("backbone."): v for k, v in pretrained.items()}\n'
    "result = model.load_state_dict(pretrained, strict=False)\n"
    'assert not result.unexpected_keys\nassert result.missing_keys == ["fc.weight", "fc.bias"]',
    remedy="Rename the keys until they match, and check what is missing, or let `frostline.plan_load` do both.",
    safety=Safety.MANUAL,
    how_safe="manual: which entry belongs to which tensor has to be decided",
    false_alarms="Loading values that the model already had (a target network that was copied from the same weights) "
    "is information only before training begins, and not told after that: a best state may be the last one.",
    source="libreyolo PR444, defect4ML 013",
    look=look,
    sound=sound,
)
