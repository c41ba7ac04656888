"""N306: the input does not look like what the pretrained statistics expect."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import ModelSeen, NormInput, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted
from frostline.findings import Safety, Severity

# Data from elsewhere (photographs against drawings, one hospital against another) shifts the first layer by less than
# one standard deviation and a factor of 2; pictures that were not standardized, or not divided by 255, by more.
_GAP = 1.5
_RATIO = 2.5
# With the usual momentum of 0.1 the initial 0 and 1 are forgotten after so many batches: 0.9 ** 50 = 0.005.
_SETTLED = 50
# The standard deviation of so many values is known to within 10 %: 1 / sqrt(2 * 64) = 0.09.
_FEWEST = 64


def look(seen: Seen) -> Iterator[Found]:
    """The first batch, at the first normalization layer, against the running statistics of a pretrained model."""
    for model in seen.models:
        given = model.norm_input
        if given is None or not _can_tell(given) or _fits(given):
            continue
        phase = model.phases[0] if model.phases else None
        yield Found(
            message=f"the input of {model.name} does not look like what {given.path} expects: "
            f"standard deviation x {given.sd_ratio:.3g}, mean off by {given.mean_gap:.2g} standard deviations",
            model=model.name,
            paths=(given.path,),
            evidence=(
                f"medians over its channels in the first pass, {counted(given.rows, 'value')} a channel",
                f"a factor above {_RATIO:.2g}, or {_GAP:.2g} standard deviations, is another scale, not other data",
                *([f"first pass at {at(phase.place)}"] if phase else []),
            ),
            remedy="scale the input as the pretrained model's was: compare range (0 to 1, or 0 to 255), mean and "
            "standard deviation with its recipe",
            severity=Severity.WARNING,
            safety=Safety.MANUAL,
            place=phase.place if phase else None,
            inferred=True,
        )


def _can_tell(given: NormInput) -> bool:
    # Older checkpoints have no counter: it is 0 although the statistics are not the initial ones.
    settled = given.counted is None or given.counted == 0 or given.counted >= _SETTLED
    return not given.fresh and settled and given.rows >= _FEWEST


def _fits(given: NormInput) -> bool:
    return given.mean_gap <= _GAP and 1 / _RATIO <= given.sd_ratio <= _RATIO


def sound(seen: Seen) -> str | None:
    """Which models got what their statistics expect."""
    right: list[ModelSeen] = [m for m in seen.models if (n := m.norm_input) is not None and _can_tell(n) and _fits(n)]
    return "the input looks as the statistics of " + " and ".join(m.name for m in right) + " expect" if right else None


RULE = Rule(
    code="N306",
    what="Compares the batch that arrives at the first normalization layer with the running statistics of that "
    "layer, in the first pass of a model that was trained before.",
    why="A pretrained model expects its input scaled as in its training. Pictures in 0 to 255, or not standardized, "
    "still run: features are garbage, the first epochs are spent on unlearning them, and a frozen trunk never "
    "recovers.",
    evidence="The median over channels of the ratio of standard deviations and of the shift of means, with how many "
    "values they are from; in the first pass.",
    example="model = resnet18(weights=ResNet18_Weights.DEFAULT)\nlogits = model(pictures.float())",
    instead="weights = ResNet18_Weights.DEFAULT\nmodel = resnet18(weights=weights)\nlogits = "
    "model(weights.transforms()(pictures))",
    remedy="Apply the transforms of the weights.",
    safety=Safety.MANUAL,
    how_safe="manual: how the data was meant to be scaled is not known",
    false_alarms="Data of another kind than the model was trained on, noise as input in a test, batches of one "
    "class, and a layer whose statistics are a mixture of two kinds of input, which `frostline.diagnose` tells. A "
    "model that was not trained, or for fewer than 50 batches, is not looked at. Channels in the wrong order are not "
    "seen.",
    source="open_clip#204, mapping-challenge#77, FOA#2",
    look=look,
    sound=sound,
)
