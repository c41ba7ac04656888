"""The turns of phrase that rules share: counts, how far a tensor moved, who wrote it, how to select a set of paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from frostline.audit.events import FunctionalCall, GradFlag, Load, ModeCall, Save, Wrapped
from frostline.audit.places import Place
from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.state import names


def counted(count: int, what: str, plural: str = "") -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "layer"), counted(2, "layer"), counted(3, "entry", "entries")
        ('1 layer', '2 layers', '3 entries')
    """
    return f"{count:,} {what if count == 1 else plural or what + 's'}"


def some(paths: Iterable[str]) -> str:
    """A few of many paths, neighbours folded, and how many more there are.

    Example:
        >>> some(["a.0.weight", "a.1.weight"])
        'a.[0-1].weight (x2)'
    """
    return names.name_folded(list(paths), root="(root)")


def biggest(tensors: Sequence[TensorSeen]) -> TensorSeen:
    """The one that moved furthest; statistics before counters."""
    return max(tensors, key=lambda t: (t.role != "norm.count", max((size for _, size in t.drift), default=0.0)))


def drift_of(tensor: TensorSeen, seen: Seen) -> str:
    """How far a tensor moved, in how many steps.

    Example:
        >>> drift_of(TensorSeen("a", "buffer", "norm.mean", "", "BatchNorm1d", (2,), drift=[(1, 0.5)]), Seen())
        'moved by up to 0.5'
    """
    size = max((size for _, size in tensor.drift), default=0.0)
    steps = len(seen.steps)
    return (f"moved by up to {size:.3g}" if size else "moved") + (f" in {counted(steps, 'step')}" if steps else "")


def writer(tensor: TensorSeen) -> list[str]:
    """What wrote a tensor and where, a line for evidence; nothing where no write was traced."""
    if not tensor.writes:
        return []
    write = tensor.writes[0]
    by = "a write past torch's dispatcher (numpy, or its storage)" if write.outside else write.op
    return [f"written by {by} at {write.place}  {write.place.text}".rstrip()]


def last_mode_call(seen: Seen, model: str, *, mode: bool, path: str | None = None) -> ModeCall | None:
    """The last call of ``train()`` or ``eval()`` on a model, or on one module of it."""
    calls = seen.of(ModeCall, lambda e: e.model == model and e.mode is mode and path in {None, e.path})
    return calls[-1] if calls else None


def selectors_of(paths: Sequence[str], model: ModelSeen) -> str:
    """The shortest list of quoted module paths that covers modules, for a remedy: whole frozen parts where they are.

    Goes up from each module as long as everything above it is frozen too, so that 53 batch norms become ``"backbone"``.
    """
    tops: dict[str, None] = {}
    for path in paths:
        top = path
        while (above := names.parent(top)) and (module := model.modules.get(above)) is not None and module.frozen:
            top = above
        tops.setdefault(top)
    wanted = [path for path in tops if path]
    if not wanted:
        return '"*"'
    return ", ".join(f'"{path}"' for path in wanted)


def share_below(model: ModelSeen, wanted: Iterable[str]) -> dict[str, tuple[int, int]]:
    """For each module that has parameters below it, how many of them are among these paths, and how many there are."""
    paths = set(wanted)
    found: dict[str, tuple[int, int]] = {}
    for tensor in model.parameters:
        path = tensor.path
        while path:
            path = names.parent(path)
            part, whole = found.get(path, (0, 0))
            found[path] = part + (tensor.path in paths), whole + 1
    return found


def parts_of(paths: Iterable[str], model: ModelSeen) -> tuple[str, ...]:
    """The fewest modules and tensors that together have exactly these parameters; the root is the empty string."""
    wanted = set(paths)
    wanted |= {alias for path in wanted if path in model.tensors for alias in model.tensors[path].aliases}
    below = share_below(model, wanted)
    found: dict[str, None] = {}
    for path in (p for p in model.tensors if p in wanted):
        top = above = path
        while above:
            above = names.parent(above)
            part, whole = below.get(above, (0, 1))
            top = above if part == whole else top
        found.setdefault(top)
    return tuple(found)


def quoted(parts: Sequence[str]) -> str:
    """Paths as selectors in source, at most four.

    Example:
        >>> quoted(["trunk", "head.bias"]), quoted([""])
        ('"trunk", "head.bias"', '"*"')
    """
    return ", ".join(f'"{path or "*"}"' for path in parts[:4]) + (", ..." if len(parts) > 4 else "")


def freezer(seen: Seen, model: ModelSeen, parts: Sequence[str], *, what: str = "") -> Callable[[], str]:
    """A repair that puts a hold on parts of a model, and lets the optimizers that own them know.

    Args:
        seen: what was seen.
        model: the model.
        parts: paths of modules and parameters.
        what: how the parts are called in what the repair says; their paths by default.
    """

    def repair() -> str:
        from frostline.freezing import freeze
        from frostline.state.selection import exactly

        assert model.live is not None
        owners = {tensor.owner[0] for tensor in model.parameters if tensor.owner}
        optimizers = [o.live for o in seen.optimizers if o.name in owners and o.live is not None]
        # The root has no path of its own; a star selects the same.
        freeze(model.live, *(exactly(part) if part else "*" for part in parts), optimizer=optimizers or None)
        return f"a hold on {what or some(parts)}"

    return repair


def saved_of(model: ModelSeen, seen: Seen) -> tuple[list[Save], set[str]]:
    """The checkpoints that hold tensors of a model by name, and the paths that are in any of them.

    A bare tensor, or a list, is no checkpoint: nobody can load it back by name.
    """
    saves = [save for save in seen.of(Save) if save.saved.get(model.name) and (save.top_keys or save.whole_module)]
    return saves, {path for save in saves for path in save.saved[model.name]}


def whole_part(saved: set[str], model: ModelSeen) -> str:
    """The one module whose parameters are all saved, and no others: somebody asked for that part; empty otherwise."""
    held = [tensor.module for tensor in model.parameters if tensor.path in saved]
    top = held[0] if held else ""
    while top and not all(names.is_under(path, top) for path in held):
        top = names.parent(top)
    inside = {tensor.path for tensor in model.parameters if names.is_under(tensor.module, top)}
    return top if top and inside <= saved else ""


SHARDING = ("fully_shard", "FullyShardedDataParallel")


def wrapped_by(seen: Seen, model: str, *wrappers: str) -> Wrapped | None:
    """The first time that a model, or a part of it, was wrapped by one of these."""
    return next((e for e in seen.of(Wrapped) if e.model == model and e.wrapper in wrappers), None)


def arrived(load: Load) -> int:
    """How many tensors of a module came in by a load.

    Both sides count: torch itself fills in the counter of a batch norm that did not come, and does not call it missing.
    """
    return max(min(load.wanted - len(load.missing), load.given - len(load.unexpected)), 0)


def share(part: int, whole: int) -> str:
    """How many of some.

    Example:
        >>> share(1, 1), share(3, 3), share(2, 3)
        ('it', 'all of them', '2 of them')
    """
    if part == whole:
        return "it" if whole == 1 else "all of them"
    return f"{part:,} of them"


def without_comment(text: str) -> str:
    """A line of source without the comment at its end.

    Example:
        >>> without_comment("p.require_grad = False  # frozen")
        'p.require_grad = False'
    """
    return text.partition("  #")[0].rstrip()


def moved_by(calls: Sequence[FunctionalCall], model: ModelSeen) -> tuple[str, ...]:
    """The statistics of a model that functional calls in train mode were not given, and that moved.

    In a model that does not train there is nothing to compare them with, but in train mode every pass writes to them.
    """
    left = {names.join(call.path, name) for call in calls for name in call.buffers_left}
    moved = [t for t in model.buffers if t.moved or model.contract_at is None]
    return tuple(t.path for t in moved if t.path in left and t.role.startswith("norm."))


def at(place: Place) -> str:
    """A line and what stands there, as evidence has it.

    Example:
        >>> at(Place("train.py", 3))
        'train.py:3'
    """
    return f"{place}  {place.text}".rstrip()


def differing(seen: Seen, model: ModelSeen, paths: Iterable[str]) -> tuple[str, ...]:
    """The tensors of a model that are not the same in all processes of the run."""
    held = [rank.tensors[model.name] for rank in seen.ranks if model.name in rank.tensors]
    if len(held) < 2:
        return ()
    return tuple(path for path in paths if all(path in h for h in held) and len({h[path] for h in held}) > 1)


def call_at(place: Place) -> str:
    """A call and where it stands, within a sentence: ``net.train() at train.py:37``.

    Example:
        >>> call_at(Place("train.py", 3))
        'train.py:3'
    """
    text = without_comment(place.text)
    return f"{text} at {place}" if text else str(place)


def flags_by_path(seen: Seen) -> dict[tuple[str, str], list[GradFlag]]:
    """Every write of ``requires_grad``, by the model and the path of the parameter, in order."""
    found: dict[tuple[str, str], list[GradFlag]] = {}
    for event in seen.of(GradFlag):
        found.setdefault((event.model, event.path), []).append(event)
    return found
