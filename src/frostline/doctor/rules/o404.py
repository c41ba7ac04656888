"""O404: loading replaced the parameters that the optimizer holds."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import Load
from frostline.audit.seen import Seen
from frostline.doctor.ownership import LeftOut, left_out
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Models whose parameters became other tensors, under the same names, after the optimizer was made."""
    for left in left_out(seen):
        if left.why == "assigned":
            yield _found(left, seen)


def _found(left: LeftOut, seen: Seen) -> Found:
    home, load = left.optimizer, left.cause
    by = "load_state_dict(assign=True)" if load is not None else "to_empty(), or load_state_dict(assign=True),"
    since = 0 if load is None else load.step
    steps = sum(step.optimizer == home.name and step.step >= since for step in seen.steps)
    owned = sum(model == left.model.name for group in home.groups for model, _ in group.paths)
    all_of_it = len(left.tensors) + owned
    evidence = [f"loaded at {at(load.place)}"] if load is not None else []
    if home.made.is_known:
        evidence.append(f"{home.name} was made before that, at {at(home.made)}")
    evidence.append(
        f"{counted(len(left.tensors), 'parameter')} with gradients, values unchanged in {counted(steps, 'step')}"
    )
    return Found(
        message=f"{by} put new tensors in the place of {len(left.tensors)} of {all_of_it} parameters: "
        f"{home.name} steps on the old ones, the model never trains",
        model=left.model.name,
        paths=left.places,
        evidence=tuple(evidence),
        remedy=f"{left.model.name}.load_state_dict(state), which writes into the tensors that there are; or make the "
        "optimizer after it"
        if load is not None
        else "make the optimizer after the parameters have their memory and are loaded",
        severity=Severity.ERROR,
        safety=Safety.UNSAFE,
        place=home.made if load is None else load.place,
    )


def sound(seen: Seen) -> str | None:
    """That loads left the optimizers with the parameters of their models."""
    loads = seen.of(Load, lambda e: not e.error)
    if not loads or not seen.steps or any(o.orphans_were for o in seen.optimizers):
        return None
    return f"after {counted(len(loads), 'load')} the optimizers have the parameters that the models have"


RULE = Rule(
    code="O404",
    what="Compares the tensors that an optimizer was made with, with those that stand at the same names in the model "
    "afterwards.",
    why="`load_state_dict(assign=True)` and `to_empty()` put new `Parameter` objects into the model. An optimizer that "
    "was made before keeps the old ones: it steps without an error, on tensors that nobody uses.",
    evidence="The line that loaded, the line that made the optimizer, and that the parameters had gradients and did "
    "not move; from the first step on.",
    example="optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nmodel.load_state_dict(state, assign=True)",
    instead="model.load_state_dict(state, assign=True)\noptimizer = torch.optim.SGD(model.parameters(), lr=0.1)",
    remedy="Make the optimizer after loading, or load without `assign=True`.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the model begins to train",
    false_alarms="None known: an optimizer that is not used after the load, or a model that is only evaluated, is not "
    "reported.",
    source="none found; torch says so in the documentation of `assign`",
    look=look,
    sound=sound,
    explains=("O402", "O412", "O413", "O411", "H602", "F107"),
)
