"""What does measuring the inputs of all batch norms cost? `population_moments` over a loader, against two baselines.

1. Plain forward passes over the same batches, in eval mode and without gradients: what any measurement has to pay.
2. fvcore's `update_bn_stats`, which runs the model in train mode and estimates the same figures, at equal batch size.

Both sides see the same tensors. The ResNet-20 at small batches is the hardest case: its layers take less than a
millisecond each, so that every call around them counts.
"""

from __future__ import annotations

import warnings

import torch
from measure import Comparison, Side, compare, resnet, rounds_asked_for, write
from planted_models import ResNet20
from torch import Tensor, nn

from frostline.norms import population_moments

PLAIN, FVCORE = 1.10, 1.0
# Model, pixels, samples a batch, batches.
CASES = (
    ("ResNet-20", 32, 32, 16),
    ("ResNet-20", 32, 128, 4),
    ("ResNet-18", 128, 32, 3),
    ("ResNet-18", 224, 16, 2),
    ("ResNet-50", 128, 16, 3),
    ("ResNet-50", 224, 16, 1),
)


def model_of(name: str, images: Tensor) -> nn.Module:
    if name != "ResNet-20":
        return resnet(name.lower().replace("-", ""), images)
    model = ResNet20()
    with torch.no_grad():
        for _ in range(20):
            model.train()(images)
    return model


def compare_case(name: str, pixels: int, samples: int, batches: int, rounds: int) -> list[Comparison]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore scripts functions, which torch has deprecated
        from fvcore.nn.precise_bn import update_bn_stats

    loader = [torch.randn(samples, 3, pixels, pixels) for _ in range(batches)]
    model = model_of(name, loader[0])

    @torch.no_grad()
    def plain() -> None:
        for batch in loader:
            model(batch)

    @torch.no_grad()
    def fvcore() -> None:
        update_bn_stats(model, loader, batches, progress=None)  # type: ignore[arg-type]

    title = f"{name}, {pixels} px, batch {samples}"
    ours = {how: f"population_moments(upstream={how!r})" for how in ("batch", "running")}
    sides = {
        how: Side(ours[how], lambda how=how: population_moments(model, loader, upstream=how), model.eval)
        for how in ("batch", "running")
    }
    base = Side("plain forward passes in eval mode", plain, model.eval)
    return [
        compare(f"{title}: moments, batch / plain", sides["batch"], base, rounds=rounds, goal=PLAIN),
        compare(f"{title}: moments, running / plain", sides["running"], base, rounds=rounds, goal=PLAIN),
        compare(
            f"{title}: moments, batch / fvcore",
            sides["batch"],
            Side("fvcore update_bn_stats in train mode", fvcore, model.train),
            rounds=rounds,
            goal=FVCORE,
        ),
    ]


def main() -> None:
    rounds = rounds_asked_for(15)
    torch.manual_seed(0)
    results = [each for case in CASES for each in compare_case(*case, rounds)]
    write("norm_moments", {"cases": CASES, "rounds": rounds}, results)


if __name__ == "__main__":
    main()
