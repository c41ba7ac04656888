"""H601: layers are kept in a plain list or dict: torch does not see them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, cast

from frostline.audit.events import Backward
from frostline.audit.places import NOWHERE, Place, kind_of
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Modules in plain containers of a model whose parameters get gradients and are in no model."""
    reached = {shape for event in seen.of(Backward) for shape in event.outside}
    owned = {
        id(parameter)
        for optimizer in seen.optimizers
        if optimizer.live is not None
        for group in optimizer.live.param_groups
        for parameter in group["params"]
    }
    for model in seen.models:
        for owner, attribute, _ in model.hidden:
            parameters = _parameters(model, owner, attribute)
            trains = [p for p in parameters if p.requires_grad and tuple(p.shape) in reached]
            if not trains:
                continue  # never used with gradients: a teacher that is kept out of the state dict on purpose
            stepped = [p for p in trains if id(p) in owned]
            yield _found(model, owner, attribute, len(parameters), len(trains), len(stepped))


def _found(model: ModelSeen, owner: str, attribute: str, parameters: int, trains: int, stepped: int) -> Found:
    place, kind = _line(model, owner, attribute)
    path = f"{owner}.{attribute}" if owner else attribute
    module = "nn.ModuleDict" if kind == "dict" else "nn.ModuleList"
    evidence = [
        (
            f"{model.name}.{path} is a {kind} with modules that have {counted(parameters, 'parameter')}; "
            f"{trains} of them get gradients"
        ),
        f"{model.name}.parameters() and state_dict() do not list them; train(), eval() and to() do not reach them",
    ]
    evidence.append(
        f"{stepped} of them were given to an optimizer by hand"
        if stepped
        else "no optimizer has them: they never train"
    )
    return Found(
        message=f"{path} keeps {counted(parameters, 'parameter')} in a plain {kind}: torch does not see these layers"
        + ("" if stepped == trains else ", and they never train"),
        model=model.name,
        paths=(path,),
        evidence=tuple(evidence),
        remedy=f"self.{attribute} = {module}(...)",
        severity=Severity.WARNING if stepped == trains else Severity.ERROR,
        safety=Safety.UNSAFE,
        place=place,
    )


def _holder(model: ModelSeen, owner: str) -> Any:
    return None if model.live is None else model.live.get_submodule(owner)


def _parameters(model: ModelSeen, owner: str, attribute: str) -> list[Any]:
    """The parameters of the modules in a container, each once."""
    found: dict[int, Any] = {}
    level: list[Any] = [getattr(_holder(model, owner), attribute, None)]
    while level:
        item = level.pop()
        if isinstance(item, Mapping):
            level += list(cast("Mapping[Any, Any]", item).values())
        elif isinstance(item, (list, tuple)):
            level += list(cast("list[Any]", item))
        elif hasattr(item, "parameters") and hasattr(item, "named_modules"):
            found |= {id(parameter): parameter for parameter in item.parameters()}
    return list(found.values())


def _line(model: ModelSeen, owner: str, attribute: str) -> tuple[Place, str]:
    """Where a class of the owner makes the container, and which kind it is."""
    holder = _holder(model, owner)
    kind = type(getattr(holder, attribute, None)).__name__
    for made_by in type(holder).__mro__:
        try:
            file = inspect.getsourcefile(made_by) or ""
            if kind_of(file) != "user":
                break
            lines, first = inspect.getsourcelines(made_by)
            statements = [n for n in ast.walk(ast.parse(textwrap.dedent("".join(lines)))) if isinstance(n, ast.stmt)]
        except (OSError, TypeError, SyntaxError):
            break
        for statement in statements:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            if any(target is not None and ast.unparse(target) == f"self.{attribute}" for target in targets):
                return Place(file, first - 1 + statement.lineno, "__init__"), kind
    return NOWHERE, kind


def sound(seen: Seen) -> str | None:
    """That every tensor that gets gradients belongs to a model."""
    passes = seen.of(Backward)
    if not passes or not seen.trained or any(event.outside for event in passes) or any(m.hidden for m in seen.models):
        return None
    return "every tensor that the first backward passes reach belongs to a model: no layer is hidden in a list or dict"


RULE = Rule(
    code="H601",
    what="Looks for modules in plain lists, tuples and dicts of a model, and whether the backward pass reaches "
    "parameters of theirs that no model has.",
    why="torch registers a module only as an attribute, in `nn.ModuleList`, `nn.ModuleDict` or `nn.Sequential`. "
    "What a plain list keeps runs, but `parameters()`, `state_dict()`, `train()`, `eval()` and `to()` pass it by: "
    "it is not trained, not saved, and stays on the CPU.",
    evidence="The attribute, how many parameters are behind it, that the backward pass reaches them, and the line that "
    "makes the container; from the first backward pass on.",
    example="self.layers = [nn.Linear(8, 8) for _ in range(4)]",
    instead="self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])",
    remedy="Use `nn.ModuleList` or `nn.ModuleDict`, and make the optimizer after it.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: more parameters train, and the state dict gets more entries, which older checkpoints lack",
    false_alarms="A module that is put into a list to keep it out of the state dict on purpose, and that gets "
    "gradients all the same: freeze it. One that gets no gradients, or that is registered elsewhere too, is not "
    "reported.",
    source="pytorch#59925, pytorch#38639, torchfix#31",
    look=look,
    sound=sound,
)
