"""When which modules of a model were in which mode: the calls that were seen as lanes over the steps of a loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from frostline.cli.doctor_subjects import line_of
from frostline.report.mode_lanes import Flip, Lane, ModeLine, ModeTimeline, PassRun

if TYPE_CHECKING:  # importing them would import torch, and `--help` should not wait for that
    from frostline.audit.events import ModeCall
    from frostline.audit.seen import ModelSeen, ModuleSeen, Seen

_MOST_LANES = 14
_MOST_CALLS = 40


def must_eval(module: ModuleSeen, codes: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a module was to stay in eval mode.

    That it stood in eval mode before it trained is not held against one that no rule speaks of.
    """
    from frostline.audit.contract import INFERRED

    if module.must_eval in INFERRED and module.training:
        return module.path in codes
    return bool(module.must_eval)


def mode_timeline(model: ModelSeen, seen: Seen, codes: Mapping[str, tuple[str, ...]]) -> ModeTimeline | None:
    """When which modules were in which mode, and the lines that changed it; ``None`` where no module is known.

    Args:
        model: the model.
        seen: all that was seen.
        codes: path to the codes of the findings that name it.
    """
    from frostline.audit.events import ModeCall

    if not model.modules:
        return None
    calls = seen.of(ModeCall, lambda event: event.model == model.name and bool(event.flipped or event.guarded))
    starts = [(phase.step, phase.first) for phase in model.phases]
    at = _places([(call.step, call.at) for call in calls] + starts)
    flipped = {number: Flip(at[call.at], "train" if call.mode else "eval") for number, call in enumerate(calls)}
    changes: dict[str, list[int]] = {path: [] for path in model.modules}
    for number, call in enumerate(calls):
        for path in call.flipped:
            if path in changes:
                changes[path].append(number)
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for path, numbers in changes.items():
        now = "train" if model.modules[path].training else "eval"
        begins = now if not numbers else ("eval" if calls[numbers[0]].mode else "train")
        groups.setdefault((begins, tuple(numbers)), []).append(path)
    lanes = [
        _lane(paths, begins, tuple(flipped[n] for n in numbers), model, codes, alone=len(groups) == 1)
        for (begins, numbers), paths in groups.items()
    ]
    lines = _mode_lines(calls, at)
    return ModeTimeline(
        steps=len(seen.steps),
        lanes=tuple(lanes[:_MOST_LANES]),
        passes=tuple(PassRun(at[p.first], _kind(training=p.training, grad=p.grad)) for p in model.phases),
        calls=tuple(lines[:_MOST_CALLS]),
        left_out=len(lanes[_MOST_LANES:]),
        calls_left_out=len(lines[_MOST_CALLS:]),
    )


def _places(events: Iterable[tuple[int, int]]) -> dict[int, float]:
    """Number of an event to its place between the steps: those of one step stand evenly in it."""
    by_step: dict[int, list[int]] = {}
    for step, number in sorted(set(events)):
        by_step.setdefault(step, []).append(number)
    return {
        number: step + place / (len(numbers) + 1)
        for step, numbers in by_step.items()
        for place, number in enumerate(numbers, start=1)
    }


def _lane(
    paths: list[str],
    begins: str,
    flips: tuple[Flip, ...],
    model: ModelSeen,
    codes: Mapping[str, tuple[str, ...]],
    *,
    alone: bool,
) -> Lane:
    from frostline.state.names import name_folded, parent

    own = set(paths)
    # A module whose own parent has the same history goes without saying.
    tops = [path for path in paths if not path or parent(path) not in own]
    whole = model.name if alone else f"{model.name}, all else"
    name = whole if "" in own else name_folded(tops, most=3)
    must = [path for path in paths if must_eval(model.modules[path], codes)]
    later = any(flip.mode == "train" for flip in flips)
    broken = any(model.modules[path].training or (later and path in codes) for path in must)
    return Lane(name, len(paths), begins, flips, len(must), broken)


def _mode_lines(calls: Sequence[ModeCall], at: Mapping[int, float]) -> list[ModeLine]:
    """The lines of source that changed modes, each once."""
    by_line: dict[tuple[object, ...], list[ModeCall]] = {}
    for call in calls:
        by_line.setdefault((call.place.file, call.place.line, call.path, call.mode), []).append(call)
    found: list[ModeLine] = []
    for same in by_line.values():
        first = same[0]
        did = f".training = {first.mode}" if first.direct else ".train()" if first.mode else ".eval()"
        found.append(
            ModeLine(
                call=first.place.text or f"{first.path or first.model}{did}",
                place=line_of(first.place) + (f", by {first.place.via}" if first.place.via else ""),
                mode="train" if first.mode else "eval",
                at=tuple(at[call.at] for call in same),
                steps=_steps([call.step for call in same]),
                flipped=max(len(call.flipped) for call in same),
                guarded=max(len(call.guarded) for call in same),
            )
        )
    return found


def _steps(steps: Sequence[int]) -> str:
    if len(steps) <= 6:
        return ", ".join(f"{step:,}" for step in steps)
    return f"{steps[0]:,} to {steps[-1]:,}, {len(steps):,} times"


def _kind(*, training: bool, grad: bool) -> str:
    return ("train-grad" if grad else "train") if training else ("eval-grad" if grad else "eval")
