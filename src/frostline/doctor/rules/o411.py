"""O411: clipping counts gradients that no optimizer uses."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import Clip, ZeroGrad
from frostline.audit.places import Place
from frostline.audit.seen import Seen
from frostline.doctor.ownership import home_of, in_code, left_out
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, parts_of, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Calls that clip parameters with gradients of which no optimizer has some, one finding for each line and model."""
    # Of what was forgotten, replaced or unfrozen late another rule speaks: then the optimizer is wrong, not the clip.
    mistaken = {(left.model.name, path) for left in left_out(seen) if left.why != "meant" for path in left.paths}
    sites: dict[tuple[Place, str], list[Clip]] = {}
    for clip in seen.of(Clip):
        for name in dict.fromkeys(model for model, _ in clip.unowned if model):
            sites.setdefault((clip.place, name), []).append(clip)
    for (place, name), clips in sites.items():
        model = seen.model(name)
        if model is None or home_of(model, seen) is None:
            continue  # a net that no known optimizer trains: one that is made later, or was not found
        keys = {key for clip in clips for key in clip.unowned if key[0] == name} - mistaken
        paths = [path for path in model.tensors if (name, path) in keys]
        if not paths:
            continue
        parts = parts_of(paths, model)
        home = home_of(model, seen)
        assert home is not None
        trained = parts_of([path for group in home.groups for owner, path in group.paths if owner == name], model)
        yield Found(
            message=f"clipping counts the gradients of {counted(len(paths), 'parameter')} ({some(parts)}) "
            "that no optimizer has",
            model=name,
            paths=tuple(paths),
            evidence=(
                (
                    f"{counted(clips[-1].tensors, 'tensor')} with gradients were clipped together in "
                    f"{counted(len(clips), 'call')}, {len(paths)} of them are in no optimizer"
                ),
                f"{home.name}.zero_grad() does not clear them: they pile up, and clipping gets harder from step to step"
                if not seen.of(ZeroGrad, lambda e, m=name: not e.of_optimizer and e.owner == m)
                else "what is trained is scaled down for their sake",
            ),
            remedy=f"clip what {home.name} has: "
            + (
                f"torch.nn.utils.clip_grad_norm_({in_code(name, trained[0])}.parameters(), ...)"
                if len(trained) == 1 and trained[0] in model.modules
                else f'torch.nn.utils.clip_grad_norm_([p for g in {home.name}.param_groups for p in g["params"]], ...)'
            ),
            severity=Severity.WARNING,
            safety=Safety.UNSAFE,
            place=place,
        )


def sound(seen: Seen) -> str | None:
    """How many calls clipped only what an optimizer has."""
    clips = seen.of(Clip, lambda e: not e.unowned and e.tensors > 0)
    return f"{counted(len(clips), 'call')} of clipping counted only what an optimizer has" if clips else None


RULE = Rule(
    code="O411",
    what="Looks at every `clip_grad_norm_` and `clip_grad_value_`: which of the gradients belong to parameters that no "
    "optimizer has.",
    why="The norm is that of all gradients that are given. What no optimizer has is not cleared by "
    "`optimizer.zero_grad()` either: its gradients pile up, their norm takes over, and the gradients that are used are "
    "scaled down more and more. Training slows to a halt, and the log shows a growing norm.",
    evidence="How many tensors each call clipped, which of them no optimizer has, and the line; from the first call "
    "on.",
    example="optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)\n"
    "loss.backward()\n"
    "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
    instead="loss.backward()\ntorch.nn.utils.clip_grad_norm_(model.head.parameters(), 1.0)",
    remedy="Clip what the optimizer has, and freeze what it does not have.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: less is clipped, and steps become larger",
    false_alarms="A norm over the whole model that is only logged (`max_norm=inf`). Parameters of another optimizer "
    "are not reported.",
    source="none found",
    look=look,
    sound=sound,
    explains=("O412",),
)
