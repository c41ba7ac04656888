"""How often does the layer test call statistics shifted that are right? Nominally 5 %.

Nets with random weights; their running statistics are moving averages over images of the very distribution that the
test is then shown, fresh ones each time. `alone` is the test of a layer by itself, `in eval` that of what reaches it
through the running statistics before it. The twin takes every pixel for a draw, as a z-test over all values does.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter

import torch
from measure import RESULTS, SCHEMA_VERSION, machine
from torch import Tensor, nn

from frostline.norms.feed import Feed
from frostline.norms.look import look

NOMINAL = 0.05
BATCH, UPDATES, MEASURED = 32, 120, 32


def images(generator: torch.Generator) -> Tensor:
    """Channels that go together, and pixels that share half of their variance."""
    own = torch.randn(BATCH, 3, 1, 1, generator=generator)
    return own * 0.8 + own[:, :1] * 0.6 + torch.randn(BATCH, 3, 8, 8, generator=generator)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16),
    )  # fmt: skip


def all_pixels_alarm(model: nn.Module, loader: list[Tensor]) -> bool:
    """The naive z of the first layer's first channel, with every value for a draw."""
    layer = model[1]
    x = model[0](torch.cat(loader))[:, 0].flatten().double()
    weights = 0.1 / (2 - 0.1)
    noise = x.var() * (1 / len(x) + weights / (BATCH * 64))
    return bool(((x.mean() - layer.running_mean[0].double()) / noise.sqrt()).abs() > 1.96)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", type=int, default=300)
    nets = parser.parse_args().nets
    alarms: Counter[str] = Counter()
    layers: list[str] = []
    with torch.no_grad():
        for seed in range(nets):
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            model = net()
            for _ in range(UPDATES):
                model(images(generator))
            loader = [images(generator) for _ in range(MEASURED)]
            found = look(model, Feed(loader)).layers
            layers = list(found)
            for path, layer in found.items():
                alarms[f"{path} alone"] += layer.fit_alone.p_value < NOMINAL
                alarms[f"{path} in eval"] += layer.fit_in_eval.p_value < NOMINAL
            alarms["all pixels, naive"] += all_pixels_alarm(model, loader)
    rates = {name: count / nets for name, count in sorted(alarms.items())}
    for name, rate in rates.items():
        print(f"{name:20} {rate:.3f}")
    data = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": "norm_false_alarms",
        "machine": machine(),
        "settings": {"nets": nets, "batch": BATCH, "updates": UPDATES, "measured_batches": MEASURED, "layers": layers},
        "nominal": NOMINAL,
        "standard_error": (NOMINAL * (1 - NOMINAL) / nets) ** 0.5,
        "rates": rates,
    }
    (RESULTS / "norm_false_alarms.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
