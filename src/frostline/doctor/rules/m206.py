"""M206: attention drops in eval mode too."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import Seen
from frostline.doctor.passes import attends, classes
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Scaled dot-product attention with a dropout rate, in a module in eval mode."""
    for model in seen.models:
        draws = [draw for draw in model.draws if attends(draw) and not draw.training]
        if not draws:
            continue
        first = draws[0]
        paths = tuple(dict.fromkeys(draw.path for draw in draws))
        yield Found(
            message=f"attention drops in eval mode in {counted(len(paths), 'module')}",
            model=model.name,
            paths=paths,
            evidence=(
                f"{first.op} with dropout_p above 0 at {at(first.place)}",
                f"training=False in {classes(model, paths)}",
            ),
            remedy="dropout_p=p if self.training else 0.0",
            severity=Severity.ERROR,
            safety=Safety.MANUAL,
            place=first.place,
        )


def sound(seen: Seen) -> str | None:
    """Nothing: that attention ran at all is not seen where it does not drop."""
    del seen
    return None


RULE = Rule(
    code="M206",
    what="Looks at the operators of one pass in eval mode, for attention with a dropout rate above 0.",
    why="`scaled_dot_product_attention` is a function and knows of no mode: a rate that is passed as a constant "
    "drops at test time too. Outputs are random, and generated text is worse than the loss promises.",
    evidence="The operator and its rate, its line, and the module that was in eval mode when it ran; in the first "
    "pass in eval mode.",
    example="out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)",
    instead="out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)",
    remedy="Pass `dropout_p=p if self.training else 0.0`.",
    safety=Safety.MANUAL,
    how_safe="manual: the line has to be edited, nothing in memory can mend it; the edit itself is safe, as train "
    "mode stays what it was",
    false_alarms="Attention that is meant to drop at test time, to estimate uncertainty.",
    source="transformers#33844, pytorch#124464",
    look=look,
    sound=sound,
)
