"""What Lightning's own tests ask of its finetuning callbacks, asked of ours.

| what is asked there | here |
|---|---|
| the backbone trains from its epoch on, and runs before | `test_it_trains_from_its_epoch_on` |
| its rate is below that of the rest, and rises to it | `test_its_rate_rises_to_what_its_group_says` |
| everything in the optimizer from the start is no mistake (there: a warning) | `test_everything_in_the_optimizer` |
| a run that had it goes on without it | `test_a_run_goes_on_without_it` |
| freezing reaches all layers, batch norms with it or without | `test_freezing_reaches_layers_and_parents` |
| nested lists of modules | `test_several_parts` |
| parents with parameters of their own | `test_freezing_reaches_layers_and_parents` |
| unfreezing twice changes nothing | `test_unfreezing_twice` |
| layer after layer; the state says which | `test_layer_after_layer` |
| a checkpoint brings back what was unfrozen, before optimizer states are loaded | `test_a_checkpoint_brings_it_back` |
| DeepSpeed is refused | `test_freeze.py`, by the strategy's kind, and only where there is a schedule |

Not wanted, and why:

| what is asked there | why not |
|---|---|
| a parameter group is added when a part is unfrozen | schedulers that do not know the group break, or overshoot |
| the new group gets the first group's rate, divided by ten | nobody asked for it; `fl.param_groups` says a rate |
| `track_running_stats = False` in frozen batch norms | such a layer normalizes by its batch |
| `train_bn=True` leaves batch norms training | say what is held: `Freeze("backbone", "!backbone.1")` |
| groups are kept in the callback's state by names of parameters | nothing was added that would have to be made again |
| a schedule that goes beyond the last layer is an IndexError | it is an error before the first step |
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_nets import LIGHTNINGS_OWN, At, Net, fit
from torch import nn

import frostline as fl
from frostline.errors import ModelError, NothingSelected
from frostline.integrations.lightning import Freeze
from frostline.optim import Epoch, Stage, Unfreeze

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(message) for message in LIGHTNINGS_OWN)]


def two_groups(net: Any) -> torch.optim.Optimizer:
    groups = [{"params": list(net.backbone.parameters()), "lr": 0.05}, {"params": list(net.head.parameters())}]
    return torch.optim.SGD(groups, lr=0.1)


class Layers(Net):
    """Four layers in a row, of which the last is the head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 8))


def at_each_epoch(look: Any) -> tuple[At, list[Any]]:
    seen: list[Any] = []
    return At(on_train_batch_start=lambda made, module: seen.append(look(made, module))), seen


def test_it_trains_from_its_epoch_on():
    ran: list[int] = []
    look, trains = at_each_epoch(lambda made, net: (made.current_epoch, net.backbone[0].weight.requires_grad))
    net = Net()
    net.backbone.register_forward_hook(lambda *_: ran.append(1))
    before = fl.snapshot(net, "backbone")
    held: list[bool] = []
    still = At(
        on_train_epoch_end=lambda _, net: held.append(
            not [p for p in before.diff(net).paths if "weight" in p and "req" not in p]
        )
    )
    fit(net, Freeze(schedule=Unfreeze((Stage(("backbone",), Epoch(3)),))), look, still, max_epochs=5)
    assert set(trains) == {(epoch, epoch >= 3) for epoch in range(5)}
    assert held == [True] * 3 + [False] * 2
    assert len(ran) > 20


def test_its_rate_rises_to_what_its_group_says():
    rates: list[float] = []

    class Told(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    def make(net: Any) -> torch.optim.Optimizer:
        groups = [{"params": list(net.backbone.parameters()), "lr": 0.05}, {"params": list(net.head.parameters())}]
        return Told(groups, lr=0.1)

    # The rate is scaled within a step; an epoch has four of them.
    fit(Net(make), Freeze(schedule=Unfreeze((Stage(("backbone",), Epoch(1), warmup=4),))), max_epochs=3)
    assert [round(rate, 6) for rate in rates[4:]] == [0.0125, 0.025, 0.0375, 0.05, 0.05, 0.05, 0.05, 0.05]
    assert max(rates) < 0.1


def test_everything_in_the_optimizer():
    freeze = Freeze(schedule=Unfreeze((Stage(("backbone",), Epoch(1)),)))
    fit(Net(two_groups), freeze, max_epochs=2)
    assert freeze.report is not None
    assert [each.epoch for each in freeze.report.unfrozen] == [1]


def test_a_run_goes_on_without_it(tmp_path: Path):
    saved = ModelCheckpoint(tmp_path, save_last=True)
    fit(Net(two_groups), Freeze("backbone"), saved, enable_checkpointing=True)
    net = Net(two_groups)
    made = fit(net, ckpt_path=tmp_path / "last.ckpt", max_epochs=3)
    assert made.current_epoch == 3
    assert net.backbone[0].weight.requires_grad


class Parent(nn.Module):
    """Has a parameter of its own beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "act": nn.ReLU()})
        self.own = nn.Parameter(torch.zeros(1))
        self.bn = nn.BatchNorm2d(4)


@pytest.mark.parametrize("without_norms", [False, True])
def test_freezing_reaches_layers_and_parents(without_norms: bool):
    model = nn.Sequential(OrderedDict(encoder=nn.Sequential(Parent(), Parent()), decoder=nn.Conv2d(4, 1, 1)))
    excepted = ["!*.bn"] if without_norms else []
    hold = fl.freeze(model, "encoder", *excepted)
    model.train()
    frozen = {path for path, p in model.named_parameters() if not p.requires_grad}
    everything = {path for path, _ in model.encoder.named_parameters(prefix="encoder")}
    norms = {path for path in everything if ".bn." in path}
    assert frozen == everything - (norms if without_norms else set())
    assert model.encoder[0].bn.training is without_norms
    assert model.encoder[0].bn.track_running_stats
    hold.thaw()
    assert all(p.requires_grad for p in model.parameters())


def test_several_parts():
    net = Net()
    fl.freeze(net, net.backbone[0], [*net.backbone][1])
    assert [p.requires_grad for p in net.parameters()] == [False] * 4 + [True] * 2


def test_unfreezing_twice():
    net = Net()
    hold = fl.freeze(net, "backbone")
    hold.thaw()
    hold.thaw()
    assert all(p.requires_grad for p in net.parameters())


LAYERS = Unfreeze(tuple(Stage((f"backbone.{layer}",), Epoch(3 - layer)) for layer in (2, 1, 0)))


def test_layer_after_layer(tmp_path: Path):
    saved = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    look, trains = at_each_epoch(lambda made, net: [layer.weight.requires_grad for layer in net.backbone])
    net = Layers()
    fit(net, Freeze(schedule=LAYERS), look, saved, max_epochs=5, enable_checkpointing=True)
    first = trains[::4]
    assert first == [[False] * 3, [False, False, True], [False, True, True], [True] * 3, [True] * 3]
    for epoch in range(5):
        state = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=False)["callbacks"]["Freeze[]"]
        assert len(state["run"]["schedule"]["begun"]) == min(epoch, 3)


def test_a_checkpoint_brings_it_back(tmp_path: Path):
    saved = ModelCheckpoint(tmp_path, save_last=True)
    fit(Layers(), Freeze(schedule=LAYERS), saved, max_epochs=2, enable_checkpointing=True)
    look, trains = at_each_epoch(
        lambda made, net: ([layer.weight.requires_grad for layer in net.backbone], len(made.optimizers[0].state))
    )
    fit(Layers(), Freeze(schedule=LAYERS), look, ckpt_path=tmp_path / "last.ckpt", max_epochs=3)
    # The optimizer's state is that of the four parameters that had trained; the two of the next layer are new to it.
    assert trains[0] == ([False, True, True], 4)
    assert trains[-1] == ([False, True, True], 6)


def test_a_stage_beyond_the_last_layer_is_refused():
    beyond = Unfreeze((*LAYERS.stages, Stage(("backbone.7",), Epoch(6))))
    steps: list[int] = []
    with pytest.raises((NothingSelected, ModelError), match=r"backbone\.7"):
        fit(Layers(), Freeze(schedule=beyond), At(on_train_batch_start=lambda *_: steps.append(1)))
    assert steps == []
