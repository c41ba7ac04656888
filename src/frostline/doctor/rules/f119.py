"""F119: frozen values were written by hand."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.audit.contract import INFERRED
from frostline.audit.places import NOWHERE, Place
from frostline.audit.seen import ModelSeen, Seen, TensorSeen, Write
from frostline.doctor.rule import Found, Rule
from frostline.doctor.source_lines import expressions, part_walked, reached, walks_around
from frostline.doctor.telling import biggest, counted, drift_of, parts_of, some
from frostline.findings import Safety, Severity
from frostline.state import names

# Layers whose weights are there to be trained; other parameters without gradients may be kept up by their own module.
_TRAINED_LAYERS = (
    "Linear",
    "Conv",
    "BatchNorm",
    "LayerNorm",
    "GroupNorm",
    "RMSNorm",
    "LSTM",
    "GRU",
    "RNN",
    "Multihead",
)
_BY_HAND = frozenset(
    {"aten.copy_", "aten.fill_", "aten.zero_", "aten.mul_", "aten.lerp_", "aten.clamp_", "aten.normal_"}
)


def look(seen: Seen) -> Iterator[Found]:
    """What must stay, and was changed between steps by something else than an optimizer or a normalization layer."""
    for model in seen.models:
        moved = [t for t in model.tensors.values() if t.must_stay and t.moved and not t.moved_in_step and _by_hand(t)]
        firm = [t for t in moved if t.must_stay not in INFERRED]
        inferred = [t for t in moved if t not in firm and t.module_type.startswith(_TRAINED_LAYERS)]
        if inferred and _is_average(seen, inferred):
            inferred = []
        by_line: dict[tuple[bool, Place, str], list[TensorSeen]] = {}
        for tensor in (*firm, *inferred):
            place, how = _written(seen, model, tensor)
            by_line.setdefault((tensor in firm, place, how), []).append(tensor)
        for (is_firm, place, how), tensors in by_line.items():
            yield _found(seen, model, tensors, place, how, firm=is_firm)


def _by_hand(tensor: TensorSeen) -> bool:
    """Whether a write by hand is what moved it: statistics have other ways to move."""
    if tensor.kind == "parameter":
        return True
    own = tensor.module_type.startswith("BatchNorm") or not tensor.role.startswith("norm.")
    return any(w.outside or w.via_data or (own and w.op in _BY_HAND) for w in tensor.writes)


def _is_average(seen: Seen, moved: list[TensorSeen]) -> bool:
    """Whether these follow a part of the same shape that trains: a moving average, a teacher, a target network."""
    first = moved[0]
    for other_model in seen.models:
        for other in other_model.parameters:
            if other is first or other.shape != first.shape or not (other.gradients or other.moved_in_step):
                continue
            for cut in range(first.path.count(".") + 1):
                rest = ".".join(first.path.split(".")[cut:])
                if other.path != rest and not other.path.endswith(f".{rest}"):
                    continue
                mine, theirs = first.path[: -len(rest)], other.path[: -len(rest)]
                if all(_follows(t, mine, theirs, other_model) for t in moved):
                    return True
    return False


def _follows(tensor: TensorSeen, mine: str, theirs: str, model: ModelSeen) -> bool:
    if not tensor.path.startswith(mine):
        return False
    other = model.tensors.get(theirs + tensor.path[len(mine) :])
    return other is not None and other is not tensor and other.shape == tensor.shape and not other.must_stay


def _written(seen: Seen, model: ModelSeen, tensor: TensorSeen) -> tuple[Place, str]:
    """Where it was written, and how: by the operators that were seen, or by the source."""
    for write in tensor.writes:
        if not write.in_optimizer and not write.outside:
            return write.place, _how(write)
    outside = any(w.outside for w in tensor.writes)
    place = _in_source(seen, model, tensor)
    return place, "a write past torch's dispatcher (numpy, or its storage)" if outside else ""


def _how(write: Write) -> str:
    return f"{write.op} through .data" if write.via_data else write.op


def _in_source(seen: Seen, model: ModelSeen, tensor: TensorSeen) -> Place:
    """The only line that writes into the memory of a part that it is in."""
    found: dict[Place, None] = {}
    for statement in reached(seen):
        for node in expressions(statement):
            of = _memory_of(node)
            part = part_walked(of, walks_around(statement), seen) if of is not None else None
            if part is not None and part[0] is model and names.is_under(tensor.path, part[1]):
                found.setdefault(statement.place)
    return next(iter(found)) if len(found) == 1 else NOWHERE


def _memory_of(node: ast.AST) -> ast.expr | None:
    """Of what ``x.data``, ``x.numpy()`` and ``x.detach().numpy()`` are the memory."""
    if isinstance(node, ast.Attribute) and node.attr == "data":
        return node.value
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"numpy", "untyped_storage"}
    ):
        of = node.func.value
        while isinstance(of, ast.Call) and isinstance(of.func, ast.Attribute) and of.func.attr in {"detach", "cpu"}:
            of = of.func.value
        return of
    return None


def _found(seen: Seen, model: ModelSeen, tensors: list[TensorSeen], place: Place, how: str, *, firm: bool) -> Found:
    paths = tuple(t.path for t in tensors)
    worst = biggest(tensors)
    kind = "parameter" if all(t.kind == "parameter" for t in tensors) else "tensor"
    ground = {"hold": "held", "declared": "declared frozen"}.get(tensors[0].must_stay, "frozen")
    count = counted(len(paths), kind)
    what = paths[0] if len(paths) == 1 else f"{count} of {some(parts_of(paths, model) or paths)}"
    them = "it" if len(paths) == 1 else "them"
    evidence = [f"{worst.path}: {drift_of(worst, seen)}"]
    if how:
        evidence.append(f"written by {how}" + (f" at {place}  {place.text}" if place.is_known else ""))
    elif place.is_known:
        evidence.append(f"no operator was seen to write {them}; the memory is handed out at {place}")
    else:
        evidence.append(f"no operator was seen to write {them}")
    evidence.append(f"requires_grad=False stops gradients, not writes; no optimizer step changed {them}")
    return Found(
        message=f"{what} {'is' if len(paths) == 1 else 'are'} {ground}, and {'was' if len(paths) == 1 else 'were'} "
        "written by hand",
        model=model.name,
        paths=paths,
        evidence=tuple(evidence),
        remedy="leave them out of that line: write only to parameters with p.requires_grad",
        severity=Severity.ERROR if firm else Severity.WARNING,
        safety=Safety.MANUAL,
        place=place if place.is_known else None,
        inferred=not firm,
    )


def sound(seen: Seen) -> str | None:
    """How many frozen parameters kept their bytes."""
    kept = [t for model in seen.models for t in model.parameters if t.must_stay and not t.moved]
    return (
        f"{counted(len(kept), 'frozen parameter')} kept {'its' if len(kept) == 1 else 'their'} bytes" if kept else None
    )


RULE = Rule(
    code="F119",
    what="Compares the digests of what must stay with those from before the first step, and finds what wrote where "
    "no optimizer did: in-place operators, `.data`, numpy.",
    why="A flag and an optimizer's groups do not stop a write: weight clipping over all parameters, an average that "
    "goes into the wrong model, a mask or a normalization by hand change the frozen part, and nothing complains.",
    evidence="How far the tensor moved, the operator and the line of the write (or that it went past torch's "
    "dispatcher); one step after the first write, and for writes that leave no version behind at every tenth step "
    "and at the end.",
    example="for p in model.parameters():\n    p.data.clamp_(-0.01, 0.01)",
    instead="for p in model.parameters():\n    if p.requires_grad:\n        p.data.clamp_(-0.01, 0.01)",
    remedy="Leave the frozen part out of the line that writes.",
    safety=Safety.MANUAL,
    how_safe="manual: the write may be what is wanted, and the freezing not",
    false_alarms="Parameters without gradients that a class keeps up by itself (codebooks, prototypes): they are "
    "reported only where a hold or a contract covers them. Moving averages, teachers and target networks are "
    'recognized by the part that they follow. Otherwise: `contract=Contract(moving=("teacher",))`.',
    source="facebookresearch/moco#70 (writes through .data)",
    look=look,
    sound=sound,
    explains=("F107",),
)
