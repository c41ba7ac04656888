"""O410: gradients are clipped while they are still scaled."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import Clip
from frostline.audit.places import Place
from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Calls of clipping on gradients that a gradient scaler has scaled and not unscaled, one finding for each line."""
    sites: dict[Place, list[Clip]] = {}
    for clip in seen.of(Clip, lambda e: e.tensors > 0):
        sites.setdefault(clip.place, []).append(clip)
    for place, clips in sites.items():
        scaled = [clip for clip in clips if clip.scale != 1.0]
        if not scaled:
            continue
        optimizer = seen.optimizers[0].name if len(seen.optimizers) == 1 else "optimizer"
        yield Found(
            message=f"gradients are clipped while they are still {scaled[0].scale:,.0f} times too large: "
            f"{len(scaled)} of {counted(len(clips), 'call')}",
            evidence=(
                f"the gradient scaler had scaled by {scaled[0].scale:,.0f}, and not unscaled before {at(place)}",
                (
                    f"a limit of 1 is one of {1 / scaled[0].scale:.3g} for the real gradients: nearly every step is "
                    "clipped"
                ),
            ),
            remedy=f"scaler.unscale_({optimizer}) before this line",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=place,
        )


def sound(seen: Seen) -> str | None:
    """How many calls clipped gradients of their true size."""
    clips = seen.of(Clip, lambda e: e.tensors > 0)
    if not clips or any(clip.scale != 1.0 for clip in clips):
        return None
    return f"{counted(len(clips), 'call')} of clipping saw gradients of their true size"


RULE = Rule(
    code="O410",
    what="Asks at every `clip_grad_norm_` and `clip_grad_value_` whether the gradients still carry the factor of a "
    "gradient scaler.",
    why="`scaler.scale(loss).backward()` leaves gradients that are too large by the scale, 65536 at the start. "
    "Clipped to 1.0 and unscaled afterwards they have a norm of 0.00002: the model hardly trains, and worse, by a "
    "factor that changes whenever the scaler changes its scale.",
    evidence="The scale at the call, and the line; at the first call.",
    example="scaler.scale(loss).backward()\n"
    "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"
    "scaler.step(optimizer)",
    instead="scaler.scale(loss).backward()\n"
    "scaler.unscale_(optimizer)\n"
    "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"
    "scaler.step(optimizer)",
    remedy="Call `scaler.unscale_(optimizer)` first; `scaler.step` knows that it was done.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: steps become larger, which is what the limit was meant for",
    false_alarms="A limit that was multiplied by the scale on purpose. A scaler that is switched off, or whose "
    "scale is 1, is not reported.",
    source="Lightning#9330, Lightning#9599, Pytorch-UNet#468, pytorch/examples#1196",
    look=look,
    sound=sound,
)
