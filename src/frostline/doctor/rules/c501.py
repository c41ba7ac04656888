"""C501: a checkpoint was loaded loosely and little of it arrived."""

from __future__ import annotations

import ast
import linecache
from collections import Counter
from collections.abc import Iterator

from frostline.audit.events import Load
from frostline.audit.places import Place
from frostline.audit.seen import Seen
from frostline.checkpoint.patterns import covering
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import arrived, counted, some
from frostline.errors import printable
from frostline.findings import Safety, Severity
from frostline.state.names import join, parent


def look(seen: Seen) -> Iterator[Found]:
    """Loads with ``strict=False`` after which most of both sides is unmatched, one finding for each line."""
    told: set[tuple[str, str, Place]] = set()
    for load in seen.of(Load):
        site = (load.model, load.path, load.place)
        if not _fell_short(load) or site in told or _came_later(load, seen):
            continue
        told.add(site)
        came = arrived(load)
        evidence = [f"missing in what came: {counted(len(load.missing), 'key')}: {some(load.missing)}"]
        if load.unexpected:
            evidence.append(
                f"without a place in the model: {counted(len(load.unexpected), 'key')}: {some(load.unexpected)}"
            )
        elif not load.given:
            evidence.append("the dictionary that came was empty: whatever filtered it by name matched nothing")
        name, fix = _renaming(load)
        if name:
            evidence.append(name)
        if _is_ignored(load.place):
            evidence.append("the result of load_state_dict, which lists both, is not looked at")
        yield Found(
            message=f"load_state_dict(strict=False) brought {came} of {counted(load.wanted, 'tensor')} into "
            f"{join(load.model, load.path)}; {load.given:,} came",
            model=load.model,
            paths=tuple(join(load.path, key) for key in load.missing),
            evidence=tuple(evidence),
            remedy=fix or "frostline.plan_load(model, checkpoint).apply(), which refuses what does not match",
            severity=Severity.ERROR if not came else Severity.WARNING,
            safety=Safety.UNSAFE if fix else Safety.MANUAL,
            place=load.place,
        )


def _fell_short(load: Load) -> bool:
    """Nothing arrived, or less than half of the model, and less than half of what came was of use."""
    if load.exact or load.error or not load.wanted:
        return False
    came = arrived(load)
    return not came or (2 * came < load.wanted and 2 * (load.given - len(load.unexpected)) < load.given)


def _came_later(load: Load, seen: Seen) -> bool:
    """Whether another load of the same module brought more before it was trained: the first was an attempt."""
    later = seen.of(Load, lambda e: e.model == load.model and e.at > load.at and e.step == load.step and not e.error)
    return any(e.path in {"", load.path} and not _fell_short(e) for e in later)


def _renaming(load: Load) -> tuple[str, str]:
    """What tells the names apart, where one prefix or one nested dictionary does, and the code that mends it."""
    missing, unexpected = set(load.missing), set(load.unexpected)
    extra: Counter[str] = Counter()
    lacking: Counter[str] = Counter()
    layers = {parent(key) for key in missing}
    for key in load.unexpected:
        for dot in (i for i, letter in enumerate(key) if letter == "."):
            # torch does not count a missing num_batches_tracked in a dictionary that says nothing of versions.
            if key[dot + 1 :] in missing or (key.endswith(_COUNT) and parent(key[dot + 1 :]) in layers):
                extra[key[: dot + 1]] += 1
    for key in missing:
        for dot in (i for i, letter in enumerate(key) if letter == "."):
            if key[dot + 1 :] in unexpected:
                lacking[key[: dot + 1]] += 1
    if extra and (best := extra.most_common(1)[0])[1] * 2 > len(missing):
        prefix = printable(best[0])
        return (
            f"{best[1]} of them differ by the prefix {prefix!r} only",
            f"state = {{key.removeprefix({prefix!r}): value for key, value in state.items()}}; "
            + _then(load, missing, {key.removeprefix(best[0]) for key in load.unexpected}),
        )
    if lacking and (best := lacking.most_common(1)[0])[1] * 2 > len(missing):
        prefix = printable(best[0])
        return (
            f"{best[1]} of them differ by the prefix {prefix!r} only, which what came does not have",
            f"state = {{{prefix!r} + key: value for key, value in state.items()}}; "
            + _then(load, missing, {best[0] + key for key in load.unexpected}),
        )
    nested = [key for key in load.unexpected if key in _CONTAINERS]
    if nested and len(load.unexpected) <= 12:
        return (
            f"what came looks like a whole training checkpoint: the tensors are in its entry {nested[0]!r}",
            f'{join(load.model, load.path)}.load_state_dict(checkpoint["{nested[0]}"])',
        )
    return "", ""


def _then(load: Load, missing: set[str], renamed: set[str]) -> str:
    """How the renamed state is loaded: strictly, if nothing is missing then; what is missing is named otherwise."""
    left = sorted(missing - renamed)
    if not left:
        return "then load it strictly"
    kept = covering(left, renamed)
    keep = repr(kept[0]) if len(kept) == 1 else repr(kept)
    owner = join(load.model, load.path)
    return f"then frostline.plan_load({owner}, state, keep={keep}).apply(), which refuses anything else"


_COUNT = ".num_batches_tracked"
_CONTAINERS = frozenset(
    {"state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "params"}
)


def _is_ignored(place: Place) -> bool:
    """Whether the line is a statement that only calls: nobody has the result."""
    if not place.is_known:
        return False
    try:
        tree = ast.parse("".join(linecache.getlines(place.file)))
    except (SyntaxError, ValueError):
        return False
    return any(
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "load_state_dict"
        and node.lineno <= place.line <= (node.end_lineno or node.lineno)
        for node in ast.walk(tree)
    )


def sound(seen: Seen) -> str | None:
    """How many loads brought what they should."""
    loads = [load for load in seen.of(Load) if load.wanted and not load.error]
    if not loads or any(_fell_short(load) for load in loads):
        return None
    came = sum(arrived(load) for load in loads)
    wanted = sum(load.wanted for load in loads)
    return f"{counted(len(loads), 'load_state_dict call')} brought {came:,} of {counted(wanted, 'tensor')}"


RULE = Rule(
    code="C501",
    what="Looks at every `load_state_dict(..., strict=False)`: how many tensors the module has, how many of them "
    "came, and how many that came have no place in it.",
    why="With `strict=False` a name that does not match is passed over in silence. A prefix (`module.`, `backbone.`) "
    "or a nested dictionary is enough for nothing to arrive: the model trains from random weights, and the result is "
    "a pretrained model that is a little worse than it should be.",
    evidence="The keys on both sides that found no partner, what tells them apart where that is one prefix, and "
    "whether the line uses the result; at the call itself.",
    example='model.load_state_dict(torch.load("pretrained.pth"), strict=False)',
    instead='state = torch.load("pretrained.pth")["state_dict"]\n'
    'state = {key.removeprefix("module."): value for key, value in state.items()}\n'
    "model.load_state_dict(state)",
    remedy="Rename the keys and load strictly. `frostline.plan_load(model, checkpoint)` finds the renaming, prints "
    "what goes where, and refuses to load little.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: other weights than before are in the model afterwards",
    false_alarms="A checkpoint of which on purpose less than half is used, in a model of which it fills less than "
    "half. Pick the entries before loading: `{k: v for k, v in state.items() if k.startswith(...)}`. A partial "
    "checkpoint all of whose entries arrive (an adapter, an encoder) is never reported, nor a first attempt that is "
    "followed by a load that works.",
    source="pytorch/examples#1029, simple-HRNet#79",
    look=look,
    sound=sound,
)
