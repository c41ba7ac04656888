"""What does a diagnosis cost? Against three plain forward passes in eval mode over the same data.

Without a metric: three passes in which every normalization layer's input is measured, and the tests.
"""

from __future__ import annotations

import torch
from measure import Side, compare, resnet, rounds_asked_for, write

import frostline as fl

# Three passes, each with its measurement: `norm_moments` allows 1.10 for one.
GOAL = 1.10
BATCH, BATCHES = 16, 4


def main() -> None:
    rounds = rounds_asked_for(9)
    torch.manual_seed(0)
    comparisons = []
    for name, pixels in (("resnet50", 224), ("resnet18", 128)):
        loader = [torch.randn(BATCH, 3, pixels, pixels) for _ in range(BATCHES)]
        model = resnet(name, loader[0]).eval()

        def plain(model: torch.nn.Module = model, loader: list[torch.Tensor] = loader) -> None:
            with torch.no_grad():
                for _ in range(3):
                    for images in loader:
                        model(images)

        def diagnosed(model: torch.nn.Module = model, loader: list[torch.Tensor] = loader) -> None:
            fl.diagnose(model, loader)

        comparisons.append(
            compare(
                f"diagnose, {name}, {BATCHES} batches of {BATCH} at {pixels} px",
                Side("diagnose", diagnosed),
                Side("three plain forward passes", plain),
                rounds=rounds,
                goal=GOAL,
            )
        )
    write("norm_diagnose", {"batch": BATCH, "batches": BATCHES}, comparisons)


if __name__ == "__main__":
    main()
