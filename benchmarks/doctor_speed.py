"""What does watching cost? A training step under `frostline.watch` against the same step alone, and the whole main job.

The models are a ResNet-50 whose trunk is frozen and a transformer of six layers. T0 compares identities, versions,
addresses and flags of all tensors at every step; T1 adds the digests of the buffers that must stay; T2 is the one step
after a contradiction, in which every operator is looked at. The watch has begun, and has looked closely at its first
passes, before a step is timed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from measure import Comparison, Side, compare, resnet, rounds_asked_for, write
from torch import nn
from torch.nn.functional import cross_entropy

import frostline as fl
from frostline.audit import Contract
from frostline.audit.places import NOWHERE
from frostline.audit.tracing import WriteTrace
from frostline.audit.watch import Watch
from frostline.finetune import FinetuneConfig, run

T0_GOAL, T1_GOAL, T2_GOAL, JOB_GOAL = 1.03, 1.05, 1.25, 1.05
# Passes that are looked at module by module, and one more.
SETTLED = 3
BATCH, PIXELS = 8, 160
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "hymenoptera"


class Loop:
    """A model in training that can be watched, or not."""

    def __init__(self, model: nn.Module, batch: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.model = model
        self.inputs, self.labels = batch()
        self.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)
        self._watch: Watch | None = None

    def step(self) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.model(self.inputs), self.labels).backward()
        self.optimizer.step()

    def alone(self) -> None:
        """Nobody watches."""
        if self._watch is not None:
            self._watch.__exit__(None, None, None)
            self._watch = None
        self.step()

    def watched(self, contract: Contract | None) -> Callable[[], None]:
        """A watch that has settled."""

        def prepare() -> None:
            self.alone()
            self._watch = fl.watch(self.model, self.optimizer, contract)
            self._watch.__enter__()
            for _ in range(SETTLED):
                self.step()

        return prepare

    def traced(self) -> None:
        frozen = {name: p for name, p in self.model.named_parameters() if not p.requires_grad}
        frozen |= dict(self.model.named_buffers())
        tensors = frozen or dict(self.model.named_parameters())
        with WriteTrace(tensors, in_optimizer=lambda: False, forward_place=lambda: NOWHERE):
            self.step()


def frozen_resnet50() -> Loop:
    images = torch.randn(BATCH, 3, PIXELS, PIXELS)
    model = resnet("resnet50", images)
    fl.freeze(model, "*", "!fc*")
    return Loop(model, lambda: (images, torch.randint(1000, (BATCH,))))


class Classifier(nn.Module):
    """Six layers of width 256 over 64 tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(tokens).mean(1))


def transformer() -> Loop:
    return Loop(Classifier(), lambda: (torch.randn(16, 64, 256), torch.randint(10, (16,))))


def main_job(*, watched: bool) -> None:
    """200 steps of `frostline finetune` on real images."""
    folder = Path(tempfile.mkdtemp())
    config = FinetuneConfig(data=str(DATA), model="torchvision/resnet18", batch_size=2, epochs=2, workers=0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if watched:
                with fl.watch() as seen:
                    run(config, folder / "run")
                steps = len(seen.steps)
                if steps < 200:
                    raise SystemExit(f"the main job did {steps} steps, not 200")
            else:
                run(config, folder / "run")
    finally:
        shutil.rmtree(folder)


def main() -> None:
    rounds = rounds_asked_for(15)
    torch.manual_seed(0)
    comparisons: list[Comparison] = []
    for name, make in (("ResNet-50, frozen trunk", frozen_resnet50), ("transformer, 6 layers", transformer)):
        loop = make()
        alone = Side("the step alone", loop.step, loop.alone, repeats=3)
        for tier, contract, goal in (
            ("T0", Contract(moving=("*",)), T0_GOAL),
            ("T0 and T1 on buffers", None, T1_GOAL),
        ):
            side = Side(f"{tier}, watched", loop.step, loop.watched(contract), repeats=3)
            comparisons.append(compare(f"{name}: {tier}", side, alone, rounds=rounds, goal=goal))
        traced = Side("T2, looked at by operators", loop.traced, loop.alone, repeats=3)
        comparisons.append(compare(f"{name}: T2, one step", traced, alone, rounds=rounds, goal=T2_GOAL))
        loop.alone()
    if DATA.exists():
        comparisons.append(
            compare(
                "main job, 200 steps",
                Side("watched", lambda: main_job(watched=True)),
                Side("alone", lambda: main_job(watched=False)),
                rounds=max(3, rounds // 3),
                goal=JOB_GOAL,
            )
        )
    else:
        print(f"the main job was not measured: {DATA} is absent", file=sys.stderr)
    write("doctor_speed", {"batch": BATCH, "pixels": PIXELS, "rounds": rounds, "settled": SETTLED}, comparisons)


if __name__ == "__main__":
    main()
