"""Lightning on two processes, under a real torchrun: what is held, what begins to train later, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from two_ranks import on_two_ranks

pytestmark = pytest.mark.slow

SCRIPT = """
import logging
from frostline.integrations.lightning import Freeze
from frostline.errors import CannotThaw, FrostlineError, RanksDiffer
from frostline.optim import Epoch, Plateau, Stage, Step, Unfreeze
from frostline.state import digest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
generator = torch.Generator().manual_seed(0)
data = TensorDataset(torch.randn(48, 4, generator=generator), torch.randint(0, 2, (48,), generator=generator))


class Net(LightningModule):
    def __init__(self, later=False):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.backbone = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.later = later

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.head(self.backbone(self.stem(batch[0]))), batch[1])

    def validation_step(self, batch, index):
        # Each process has losses of its own, and no sync_dist: they are not to go different ways.
        self.log("val_loss", 1.0 + (0.5 * self.current_epoch if rank else 0.0))

    def configure_optimizers(self):
        parameters = [p for n, p in self.named_parameters() if not n.startswith("backbone")]
        return torch.optim.SGD(parameters if self.later else self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


class Probe(Callback):
    def __init__(self):
        self.held, self.gradients, self.statistics, self.weights = [], {}, [], {}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        step = self.gradients.setdefault(str(trainer.current_epoch), [])
        step.append({n: digest(p.grad) for n, p in module.named_parameters() if p.grad is not None})

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.statistics.append({n: digest(b) for n, b in module.named_buffers()})

    def on_train_epoch_end(self, trainer, module):
        state = module.state_dict()
        self.held.append({n: digest(t) for n, t in state.items() if n.startswith("stem")})
        self.weights[str(trainer.current_epoch)] = {n: digest(p) for n, p in module.named_parameters()}


def trainer(*callbacks, epochs=4, **settings):
    return Trainer(
        accelerator="cpu", devices=2, strategy=settings.pop("strategy", None) or DDPStrategy(broadcast_buffers=False),
        max_epochs=epochs, logger=False, enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), **settings)


def fit(net, *callbacks, ckpt=None, **settings):
    probe = Probe()
    made = trainer(*callbacks, probe, **settings)
    made.fit(net, DataLoader(data, 8), DataLoader(data, 8), ckpt_path=ckpt)
    return probe, made


later = Unfreeze((Stage(("backbone",), Epoch(2)),))
net = Net()
before = {n: digest(t) for n, t in net.state_dict().items()}
freeze = Freeze("stem", schedule=later, report="report/freeze.json")
saved = ModelCheckpoint("checkpoints", filename="{epoch}", save_top_k=-1)
probe, _ = fit(net, freeze, saved)
found["before"], found["held"] = {n: d for n, d in before.items() if n.startswith("stem")}, probe.held
found["gradients"], found["weights"], found["statistics"] = probe.gradients, probe.weights, probe.statistics
found["unfrozen"], found["moved"] = [list(u.parts) for u in freeze.report.unfrozen], list(freeze.report.moved)
found["report_rows"] = len(freeze.report.held)
found["requires_grad"] = all(p.requires_grad for p in net.parameters())
found["saved"] = {}
for epoch in (0, 3):
    state = torch.load(f"checkpoints/epoch={epoch}.ckpt", weights_only=False)["state_dict"]
    found["saved"][epoch] = {n: digest(t) for n, t in state.items() if "running" in n}

for epoch in (1, 2):  # before the stage has come, and after
    again = Net()
    with torch.no_grad():
        again.stem[0].weight.mul_(2)  # the checkpoint has what was held
    fit(again, Freeze("stem", schedule=later), ckpt=f"checkpoints/epoch={epoch}.ckpt")
    found[f"resumed{epoch}"] = {n: digest(t) for n, t in again.state_dict().items()}
found["whole"] = {n: digest(t) for n, t in net.state_dict().items()}

class AtThirdBatch(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if index == 2:
            found["third"][self.name] = {n: digest(b) for n, b in module.named_buffers() if "running" in n}

found["third"] = {}
for merges in (True, False):
    look, at = AtThirdBatch(), ModelCheckpoint(f"steps_{merges}", every_n_train_steps=2, save_top_k=-1)
    look.name = str(merges)
    fit(Net(), Freeze("stem", merge_statistics=merges), look, at, epochs=1, limit_val_batches=0)
state = torch.load("steps_True/epoch=0-step=2.ckpt", weights_only=False)["state_dict"]
found["saved_third"] = {n: digest(t) for n, t in state.items() if "running" in n}

plateau = Freeze("stem", schedule=Unfreeze((Stage(("backbone",), Plateau(2, mode="min")),)), monitor="val_loss")
found["plateau"] = fit(Net(), plateau)[0].gradients

theirs = Net(later=True)
probe, _ = fit(theirs, BackboneFinetuning(2, backbone_initial_lr=0.1), epochs=4)
found["theirs"] = {n: digest(p) for n, p in theirs.named_parameters()}


def error(callback, net=None):
    try:
        fit(net or Net(), callback, epochs=1)
    except FrostlineError as raised:
        return [type(raised).__name__, str(raised)]


found["by_step"] = error(Freeze(schedule=Unfreeze((Stage(("backbone",), Step(2)),))))
different = Net()
if rank:
    with torch.no_grad():
        different.stem[0].weight.mul_(2)
found["different"] = error(Freeze("stem"), different)


class Mover(Callback):
    def on_train_batch_end(self, trainer, module, *_):
        if rank:
            module.stem[1].running_mean.add_(1)

moved = Freeze("stem")
try:
    fit(Net(), moved, Mover(), epochs=2)
except FrostlineError as raised:
    found["moving"] = [type(raised).__name__, str(raised), list(moved.report.moved)]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lightning_ddp")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return on_two_ranks(folder, SCRIPT)


def test_what_is_held_is_equal_to_the_bit_on_both_ranks_at_every_epoch(ranks: list[dict[str, Any]]):
    for found in ranks:
        assert len(found["held"]) == 4
        assert all(epoch == ranks[0]["before"] for epoch in found["held"])
        assert found["moved"] == []
        assert found["report_rows"] > 0
        assert found["requires_grad"]


def test_what_is_unfrozen_is_averaged_over_the_ranks(ranks: list[dict[str, Any]]):
    first, second = ranks
    assert first["gradients"] == second["gradients"]
    assert first["weights"] == second["weights"]
    for epoch in "0123":
        named = {path.partition(".")[0] for step in first["gradients"][epoch] for path in step}
        assert named == ({"head"} if epoch in "01" else {"head", "backbone"})
    assert first["unfrozen"] == [["backbone"]]


def test_without_wrapping_anew_the_ranks_drift_apart(ranks: list[dict[str, Any]]):
    first, second = (found["theirs"] for found in ranks)
    apart = {path for path in first if first[path] != second[path]}
    assert any(path.startswith("backbone") for path in apart)


def test_statistics_are_merged_before_validation_and_in_checkpoints(ranks: list[dict[str, Any]]):
    assert ranks[0]["statistics"] == ranks[1]["statistics"]
    assert len(ranks[0]["statistics"]) == 4
    last = {path: mark for path, mark in ranks[0]["statistics"][3].items() if "running" in path}
    assert ranks[0]["saved"]["3"] == last
    assert ranks[0]["saved"]["0"] != last


def test_statistics_are_merged_before_a_checkpoint_in_the_middle_of_an_epoch(ranks: list[dict[str, Any]]):
    first, second = (found["third"] for found in ranks)
    assert first["True"] == second["True"] == ranks[0]["saved_third"]
    assert first["False"] != second["False"]


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_that_resumes_ends_like_one_that_went_through(ranks: list[dict[str, Any]], epoch: int):
    for found in ranks:
        assert found[f"resumed{epoch}"] == found["whole"]


def test_a_plateau_comes_on_all_ranks_at_once(ranks: list[dict[str, Any]]):
    # The first rank's metric never gets better after the first epoch; the second rank's gets worse.
    for found in ranks:
        trains = [any("backbone" in path for path in found["plateau"][epoch][0]) for epoch in "0123"]
        assert trains == [False, False, False, True]


def test_a_stage_within_a_step_is_refused_at_the_start(ranks: list[dict[str, Any]]):
    for found in ranks:
        kind, message = found["by_step"]
        assert kind == "CannotThaw"
        assert "after step 2" in message
        assert "fix: Epoch(...)" in message


def test_ranks_that_hold_something_else_are_named_at_the_start(ranks: list[dict[str, Any]]):
    for found in ranks:
        kind, message = found["different"]
        assert kind == "RanksDiffer"
        assert "stem.0.weight" in message


def test_what_moves_on_one_rank_ends_the_run_on_all(ranks: list[dict[str, Any]]):
    (first, first_says, first_moved), (second, second_says, second_moved) = (found["moving"] for found in ranks)
    assert (first, second) == ("RanksDiffer", "FrozenStateMoved")
    assert "another one" in first_says
    assert "stem.1.running_mean" in second_says
    assert (first_moved, second_moved) == ([], ["stem.1.running_mean"])


def test_the_report_is_written(ranks: list[dict[str, Any]], folder: Path):
    written = json.loads((folder / "report" / "freeze.json").read_text())
    assert len(written["held"]) == ranks[0]["report_rows"]
