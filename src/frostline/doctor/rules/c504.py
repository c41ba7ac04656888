"""C504: the optimizer's state belongs to other parameters."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import OptimizerLoad
from frostline.audit.places import Place
from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Loaded optimizer states of other shapes than their parameters, or of other names; one for each line."""
    told: set[tuple[str, Place]] = set()
    for load in seen.of(OptimizerLoad):
        site = (load.optimizer, load.place)
        if load.error or site in told or not (load.misfits or load.renamed):
            continue
        told.add(site)
        models = [model for model, _ in load.misfits if model]
        evidence = []
        if load.misfits:
            evidence.append(f"state of another shape than the parameter's: {some([path for _, path in load.misfits])}")
        if load.renamed:
            evidence.append("the names of the parameters that were stored differ from those of this optimizer")
        evidence.append("load_state_dict of an optimizer goes by position: it compares neither names nor shapes")
        if load.misfits and seen.crash is not None and "size" in seen.crash.text and seen.crash.place.is_known:
            evidence.append(f"later, at {seen.crash.place}: {seen.crash.type}: {_line(seen.crash.text)}")
        message = (
            f"{counted(len(load.misfits), 'parameter')} got the optimizer state of another one"
            if load.misfits
            else "the optimizer state that was loaded was stored for parameters of other names, or in another order"
        )
        yield Found(
            message=message,
            model=models[0] if models else "",
            paths=tuple(path for _, path in load.misfits),
            evidence=tuple(evidence),
            remedy=f"make {load.optimizer} with the parameters in the order in which they were when it was saved "
            "(same model, same groups), or start it afresh",
            severity=Severity.ERROR if load.misfits else Severity.WARNING,
            safety=Safety.MANUAL,
            place=load.place,
        )


def _line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


def sound(seen: Seen) -> str | None:
    """How many optimizers were loaded with a state that fits."""
    loads = [load for load in seen.of(OptimizerLoad) if not load.error]
    if not loads or any(load.misfits or load.renamed for load in loads):
        return None
    if len(loads) == 1:
        return "1 optimizer state that was loaded fits its parameters by shape"
    return f"{len(loads):,} optimizer states that were loaded fit their parameters by shape"


RULE = Rule(
    code="C504",
    what="Compares, after an optimizer was loaded, the shapes of momenta and averages with those of their parameters, "
    "and the stored names with the present ones where the optimizer keeps names.",
    why="An optimizer's checkpoint numbers the parameters; it does not name them. If layers were added, reordered or "
    "grouped otherwise since, each momentum pushes another parameter. Where the shapes agree, nothing is ever said.",
    evidence="The parameters whose state has another shape, or that the stored names differ; at the load itself, "
    "before the first step.",
    example="optimizer = SGD([*model.head.parameters(), *model.trunk.parameters()], lr=0.1, momentum=0.9)\n"
    'optimizer.load_state_dict(checkpoint["optimizer"])  # saved with the trunk first',
    instead="optimizer = SGD(model.named_parameters(), lr=0.1, momentum=0.9)\n"
    'optimizer.load_state_dict(checkpoint["optimizer"])',
    remedy="Build the optimizer in the order of the checkpoint, with `named_parameters()`, so that the names are "
    "stored and can be compared; or start with an empty state.",
    safety=Safety.MANUAL,
    how_safe="manual: what the stored order was is known to the run that stored it",
    false_alarms="A third-party optimizer that keeps, under the name of one of torch's states, one of another shape "
    "on purpose. A layer that was only renamed since is told by its name: as a warning. Parameters of one shape that "
    "changed places without stored names cannot be told.",
    source="pytorch#1489, pytorch#3852, Detectron.pytorch PR118",
    look=look,
    sound=sound,
)
