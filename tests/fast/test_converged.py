"""The watcher in training: what has stopped is proposed and frozen, what has not is not, and all can be undone."""

from __future__ import annotations

import copy
import json
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

import frostline as fl
from frostline.errors import FrozenStateMoved, ModelError
from frostline.fast.converged import Converged
from frostline.fast.prefix_plan import plan
from frostline.optim import Epoch, Stage, Unfreeze, Unfreezing


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()) for _ in range(3)))
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.blocks(x))


@pytest.fixture(autouse=True)
def one_thread():
    """These nets are so small that threads wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


BY = [f"blocks.{number}" for number in range(3)]
STILL = 1e-7


def made(rates=(0.1, 0.1, 0.1), *, optimizer=torch.optim.SGD, **settings):
    """A net and a watcher; ``rates`` of the blocks say which stand still."""
    torch.manual_seed(0)
    model = Net()
    groups = [{"params": list(block.parameters()), "lr": rate} for block, rate in zip(model.blocks, rates, strict=True)]
    opt = optimizer([*groups, {"params": list(model.fc.parameters()), "lr": 0.1}], lr=0.1)
    return model, opt, Converged(model, opt, by=BY, **{"tolerance": 0.0, "growth": 100.0, **settings})


def loss_of(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 4, generator=generator)
    return functional.cross_entropy(model(x), (x[:, 0] > 0).long())


def train(model, opt, epochs, watcher=None, steps=3):
    reports = []
    for _ in range(epochs):
        model.train()
        for step in range(steps):
            opt.zero_grad()
            loss_of(model, step).backward()
            opt.step()
        if watcher is not None:
            reports.append(watcher.epoch_end())
    return reports


def verdicts(report):
    return [row.verdict for row in report.rows]


# What is proposed ---------------------------------------------------------------------------------------------------


def test_a_front_that_stands_still_is_proposed_and_one_that_moves_is_not():
    model, opt, watcher = made((STILL, STILL, 0.1))
    reports = train(model, opt, 3, watcher)
    assert [report.proposal for report in reports] == [None, None, "blocks.1"]
    assert verdicts(reports[-1]) == ["steady", "steady", "moves"]
    # What rests behind what moves is of no use.
    model, opt, watcher = made((0.1, STILL, STILL))
    assert train(model, opt, 4, watcher)[-1].proposal is None
    assert verdicts(watcher.look()) == ["moves", "steady", "steady"]


def test_weights_made_large_look_calm_to_a_criterion_of_gradients_alone():
    # In front of a batch norm, weights a thousand times as large compute the same and get a gradient a thousandth; at a
    # rate a million times as large they turn as fast as before.
    updates = []
    for factor in (1.0, 1000.0):
        model, opt, watcher = made()
        weight = model.blocks[0][0].weight
        with torch.no_grad():
            weight.mul_(factor)
        opt.param_groups[0]["params"] = opt.param_groups[0]["params"][1:]
        opt.add_param_group({"params": [weight], "lr": 0.1 * factor**2})
        report = train(model, opt, 4, watcher)[-1]
        assert (report.proposal, verdicts(report)[0]) == (None, "moves")
        updates.append(report.rows[0].update)
    assert float(weight.grad.norm()) < 0.01 * float(model.blocks[1][0].weight.grad.norm())
    # Where the watcher is right, such a criterion sees a front at rest.
    assert updates[1] == pytest.approx(updates[0], rel=0.05)
    assert updates[1] > 0.005


def test_a_gradient_that_does_not_change_looks_converged_to_its_relative_change():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    nn.init.ones_(model[0].weight)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    watcher = Converged(model, opt, head="1", by=["0"])
    norms = []
    for _ in range(4):
        model[0].weight.grad = torch.ones(4, 4)
        opt.step()
        norms.append(float(model[0].weight.grad.norm()))
        report = watcher.epoch_end()
    assert {abs(after - before) / before for before, after in pairwise(norms)} == {0.0}
    assert (report.proposal, verdicts(report)) == (None, ["moves"])


def test_a_front_whose_gradient_fades_is_proposed():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    nn.init.ones_(model[0].weight)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    watcher = Converged(model, opt, head="1", by=["0"])
    proposals = []
    for epoch in range(6):
        model[0].weight.grad = torch.full((4, 4), 0.5**epoch)
        opt.step()
        proposals.append(watcher.epoch_end().proposal)
    # Updates are 0.1 of the norm, and half as much each time: from 0.0125 on it is below a fifth of that.
    assert proposals == [None, None, None, None, "0", "0"]


def test_never_with_fewer_than_two_windows():
    model, opt, watcher = made((0.0, 0.0, 0.0), patience=1)
    for group in opt.param_groups[:3]:
        group["lr"] = STILL
    assert [report.proposal for report in train(model, opt, 2, watcher)] == [None, "blocks.2"]


def test_a_rate_of_zero_and_a_warm_up_are_no_rest():
    model, opt, watcher = made((0.0, STILL, STILL))
    assert verdicts(train(model, opt, 3, watcher)[-1])[0] == "its rate is 0"
    model, opt, watcher = made((STILL,) * 3)
    for _ in range(4):
        report = train(model, opt, 1, watcher)[-1]
        for group in opt.param_groups:
            group["lr"] *= 1.5
    assert verdicts(report) == ["its rate rises"] * 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_never_at_rest(value):
    model, opt, watcher = made((STILL, STILL, STILL))
    train(model, opt, 3, watcher)
    opt.zero_grad()
    loss_of(model).backward()
    model.blocks[0][0].bias.grad.fill_(value)
    opt.step()
    report = watcher.epoch_end()
    assert report.proposal is None
    assert verdicts(report)[0] == "not finite"
    json.dumps(report.to_json(), allow_nan=False)


def test_a_layer_that_the_loss_does_not_reach_has_not_converged():
    model, opt, watcher = made()
    model.blocks[1].register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
    report = train(model, opt, 3, watcher)[-1]
    assert verdicts(report)[0] == "no gradient"
    assert report.proposal is None


def test_the_head_is_never_frozen():
    model, opt, watcher = made((STILL,) * 3)
    opt.param_groups[3]["lr"] = STILL
    train(model, opt, 3, watcher)
    hold = watcher.freeze()
    assert watcher.frozen == BY
    assert not any(path.startswith("fc") for path in hold.paths)
    train(model, opt, 3, watcher)
    with pytest.raises(ModelError, match="no front layer more has converged"):
        watcher.freeze()


def test_what_is_frozen_from_the_start_counts_as_frozen():
    model, opt, _ = made((0.1, STILL, 0.1))
    model.blocks[0].requires_grad_(False)
    watcher = Converged(model, opt, by=BY, tolerance=0.0, growth=100.0)
    reports = train(model, opt, 3, watcher)
    assert verdicts(reports[0])[0] == "frozen"
    assert reports[-1].proposal == "blocks.1"
    # Its statistics moved until now; the hold is on them too.
    assert "blocks.0.1.running_mean" in watcher.freeze().paths
    watcher.take_back()
    assert [p.requires_grad for p in model.parameters()][::4] == [False, True, True, True]


def test_a_tensor_shared_with_the_head_keeps_its_layer_training():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    model[2].weight = model[0].weight
    opt = torch.optim.SGD(model.parameters(), lr=STILL)
    watcher = Converged(model, opt, head="2")
    for _ in range(4):
        opt.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        opt.step()
        report = watcher.epoch_end()
    assert report.proposal is None


def test_an_optimizer_that_lacks_a_parameter():
    model = Net()
    with pytest.raises(ModelError, match=r"blocks\.0\.0\.weight"):
        Converged(model, torch.optim.SGD(model.fc.parameters(), lr=0.1), by=BY)


@pytest.mark.parametrize(
    "setting",
    [{"window": 0}, {"tolerance": 1.0}, {"rest": -1.0}, {"growth": -0.1}, {"patience": 0}, {"retry_on_lr_drop": 1.0}],
)
def test_settings_that_make_no_sense(setting):
    with pytest.raises(ModelError, match=f"Converged\\({next(iter(setting))}="):
        made(**setting)


# How steps are seen -------------------------------------------------------------------------------------------------


def test_watching_changes_nothing():
    model, opt, watcher = made()
    other, other_opt, none = made()
    none.detach()
    train(model, opt, 3, watcher)
    train(other, other_opt, 3)
    assert watcher.nbytes == 0  # between two windows
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    train(model, opt, 1)
    assert watcher.nbytes == sum(p.nbytes for p in model.blocks.parameters())


def test_a_window_of_steps_ends_by_itself():
    model, opt, watcher = made((STILL,) * 3, window=2)
    train(model, opt, 1, steps=5)
    assert (watcher.look().windows, watcher.look().steps) == (2, 5)
    report = watcher.epoch_end()  # acts, and ends no window
    assert report.windows == 2
    train(model, opt, 1, steps=1)
    assert watcher.look().windows == 3
    assert watcher.look().proposal == "blocks.2"


def test_an_epoch_without_a_step_is_none():
    _, _, watcher = made()
    assert (watcher.epoch_end().windows, watcher.epoch_end().windows) == (0, 0)


def test_accumulated_gradients_and_closures_are_seen_as_they_are_stepped_with():
    plain, accumulated, closed = made(), made(), made()
    for epoch in range(3):
        for model, opt, watcher in (plain, accumulated, closed):

            def closure(model=model, opt=opt, epoch=epoch):
                opt.zero_grad()
                loss = loss_of(model, epoch)
                loss.backward()
                return loss

            if watcher is closed[2]:
                opt.step(closure)
            elif watcher is plain[2]:
                closure()
                opt.step()
            else:
                opt.zero_grad()
                norms = [block[1] for block in model.blocks]
                for _ in range(2):
                    (loss_of(model, epoch) / 2).backward()
                    for norm in norms:
                        norm.momentum = 0.0
                opt.step()
            watcher.epoch_end()
    rows = [
        [(row.gradient, row.update) for row in watcher.look().rows] for _, _, watcher in (plain, accumulated, closed)
    ]
    assert rows[0] == rows[2]
    for one, other in zip(rows[0], rows[1], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_step_that_a_scaler_skips_does_not_count():
    model, opt, watcher = made((STILL,) * 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for broken in (False, True, False):
        opt.zero_grad()
        scaler.scale(loss_of(model)).backward()
        if broken:
            model.fc.bias.grad.fill_(math.inf)
        scaler.step(opt)
        scaler.update()
    assert watcher.epoch_end().steps == 2


def test_a_step_that_a_fused_optimizer_skips_by_itself_does_not_count():
    model, opt, watcher = made(optimizer=partial(torch.optim.AdamW, fused=True))
    loss_of(model).backward()
    opt.found_inf, opt.grad_scale = torch.tensor(1.0), torch.tensor(2.0)
    opt.step()
    assert watcher.epoch_end().steps == 0


def test_a_class_that_calls_the_step_it_inherits_steps_once():
    class OnTop(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    model, opt, watcher = made(optimizer=OnTop)
    train(model, opt, 1, watcher)
    assert watcher.look().steps == 3


def test_what_another_schedule_thaws_begins_anew():
    model, opt, _ = made((STILL,) * 3)
    unfreezing = Unfreezing(Unfreeze((Stage(("blocks.0",), Epoch(3)),)), model, opt)
    watcher = Converged(model, opt, by=BY)
    for epoch in range(4):
        report = train(model, opt, 1, watcher)[-1]
        if epoch < 3:
            assert verdicts(report)[0] == "frozen"
            unfreezing.epoch_end()
    assert verdicts(report)[0] == "first window"


# Acting -------------------------------------------------------------------------------------------------------------


def test_it_freezes_by_itself_to_the_bit_and_tells_once():
    moves = []
    model, opt, watcher = made((STILL, STILL, 0.1), act=True, on_freeze=moves.append)
    reports = train(model, opt, 3, watcher)
    front = copy.deepcopy(model.blocks[:2].state_dict())
    assert [report.move for report in reports] == [None, None, moves[0]]
    assert (moves[0].before, moves[0].after) == (0, 2)
    assert moves[0].layers == moves[0].parts == ("blocks.0", "blocks.1")
    assert reports[-1].proposal is None
    train(model, opt, 3, watcher)
    assert watcher.hold.verify().still
    assert len(moves) == 1
    assert all(torch.equal(front[name], value) for name, value in model.blocks[:2].state_dict().items())
    # Batch norms of the front are in eval mode, others are not.
    assert [block[1].training for block in model.blocks] == [False, False, True]
    assert watcher.nbytes == 0
    train(model, opt, 1)
    assert watcher.nbytes == sum(p.nbytes for p in model.blocks[2].parameters())


def test_the_boundary_of_a_prefix_moves_with_it():
    model, opt, watcher = made((STILL, STILL, 0.1), act=True)
    train(model, opt, 3, watcher)
    x = torch.randn(5, 4)
    found = plan(model, x, timing=False)
    prefix = found.prefix()
    assert [place.name for place in found.places] == ["blocks.1"]
    model.eval()
    assert torch.equal(prefix.rest(prefix(x)), model(x))
    before = prefix.identity
    train(model, opt, 2, watcher)
    assert plan(model, x, timing=False).prefix().identity == before
    watcher.take_back("blocks.1")
    assert [place.name for place in plan(model, x, timing=False).places] == ["blocks.0"]


def test_without_being_asked_nothing_is_frozen():
    model, opt, watcher = made((STILL,) * 3)
    train(model, opt, 4, watcher)
    assert (watcher.hold, watcher.frozen) == (None, [])
    assert all(p.requires_grad for p in model.parameters())


def test_the_front_grows_under_one_hold():
    model, opt, watcher = made((STILL, 0.1, 0.1))
    train(model, opt, 3, watcher)
    first = watcher.freeze()
    opt.param_groups[1]["lr"] = STILL
    train(model, opt, 3, watcher)
    second = watcher.freeze()
    assert (first.released, second.verify().still) == (True, len(second.paths))
    assert watcher.frozen == BY[:2]


def test_what_is_taken_back_trains_on_and_begins_anew():
    moves = []
    model, opt, watcher = made((STILL,) * 3, on_freeze=moves.append)
    train(model, opt, 3, watcher)
    watcher.freeze()
    assert watcher.take_back("blocks.1").after == 1
    assert [move.after for move in moves] == [3, 1]
    assert [block[0].weight.requires_grad for block in model.blocks] == [False, True, True]
    assert [block[1].training for block in model.blocks] == [False, True, True]
    reports = train(model, opt, 3, watcher)
    assert verdicts(reports[0]) == ["frozen", "first window", "first window"]
    assert [report.proposal for report in reports] == [None, None, "blocks.2"]
    with pytest.raises(ModelError, match=r"take_back\(2\): it is not frozen\n  found: blocks.0 frozen"):
        watcher.take_back(2)
    assert watcher.take_back().after == 0
    assert watcher.take_back() is None
    assert watcher.hold is None


def test_a_drop_of_the_rate_takes_back():
    moves = []
    model, opt, watcher = made((STILL,) * 3, act=True, on_freeze=moves.append)
    train(model, opt, 4, watcher)
    for group in opt.param_groups:
        group["lr"] /= 10
    reports = train(model, opt, 4, watcher)
    assert [move.why for move in moves] == ["converged", "the learning rate has dropped", "converged"]
    assert [report.frozen for report in reports] == [0, 0, 0, 3]


def test_freezing_what_trained_fastest_is_no_drop():
    model, opt, watcher = made((STILL, 0.1, 0.1), act=True, tolerance=0.9, rest=0.9)
    opt.param_groups[0]["lr"] = 100.0
    opt.param_groups[0]["params"] = opt.param_groups[0]["params"][1:2]  # a bias in front of a batch norm
    reports = train(model, opt, 5, watcher)
    assert [report.frozen for report in reports] == [0, 0, 3, 3, 3]
    assert not reports[-1].rate_dropped


def test_a_drop_within_an_epoch_of_several_windows_is_not_forgotten():
    model, opt, watcher = made((STILL,) * 3, act=True, window=2)
    train(model, opt, 1, watcher, steps=6)
    assert watcher.frozen == BY
    opt.param_groups[3]["lr"] /= 10
    assert train(model, opt, 1, watcher, steps=6)[0].frozen == 0


def test_where_it_does_not_act_a_drop_is_said():
    model, opt, watcher = made((STILL,) * 3)
    train(model, opt, 3, watcher)
    watcher.freeze()
    opt.param_groups[3]["lr"] /= 10
    report = train(model, opt, 2, watcher)[0]
    assert (report.rate_dropped, report.frozen) == (True, 3)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "none"])
def test_a_smooth_schedule_takes_nothing_back(schedule):
    model, opt, watcher = made((STILL,) * 3, act=True, retry_on_lr_drop=None if schedule == "none" else 5.0)
    epochs = 12
    scheduler = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(opt, epochs),
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, epochs),
        "none": lambda: torch.optim.lr_scheduler.StepLR(opt, 6, 0.1),
    }[schedule]()
    for _ in range(epochs):
        report = train(model, opt, 1, watcher)[-1]
        scheduler.step()
    assert report.frozen == 3


def test_a_hold_that_the_user_has_thawed_is_none_of_its_own():
    model, opt, watcher = made((STILL,) * 3)
    train(model, opt, 3, watcher)
    watcher.freeze().thaw()
    assert watcher.frozen == []
    reports = train(model, opt, 3, watcher)
    assert [report.proposal for report in reports] == [None, None, "blocks.2"]


def test_as_a_context_it_verifies_and_thaws():
    model, opt, watcher = made((STILL,) * 3, act=True)
    with watcher:
        train(model, opt, 3, watcher)
        assert not model.blocks[0][0].weight.requires_grad
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    train(model, opt, 1)
    assert watcher.look().steps == 9
    model, opt, watcher = made((STILL,) * 3, act=True)
    with pytest.raises(FrozenStateMoved), watcher:
        train(model, opt, 3, watcher)
        model.blocks[0][1].running_mean.add_(1)
    assert model.blocks[0][0].weight.requires_grad


# Saving -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_run_that_is_resumed_is_the_run(at):
    model, opt, watcher = made((STILL, STILL, 0.1), act=True)
    whole = train(model, opt, 5, watcher)
    model, opt, watcher = made((STILL, STILL, 0.1), act=True)
    train(model, opt, at, watcher)
    state = json.loads(json.dumps(watcher.state_dict(), allow_nan=False))
    weights, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(opt.state_dict())
    model, opt, watcher = made((STILL, STILL, 0.1), act=True)
    model.load_state_dict(weights)
    opt.load_state_dict(moments)
    watcher.load_state_dict(state)
    resumed = train(model, opt, 5 - at, watcher)
    assert [report.to_json() for report in resumed] == [report.to_json() for report in whole[at:]]
    watcher.hold.verify()


def test_a_state_of_something_else():
    model, opt, watcher = made((STILL,) * 3)
    state = watcher.state_dict()
    with pytest.raises(ModelError, match="version"):
        watcher.load_state_dict({**state, "schema_version": 99})
    with pytest.raises(ModelError, match="another 'window'"):
        watcher.load_state_dict({**state, "window": 7})
    with pytest.raises(ModelError, match="another 'layers'"):
        watcher.load_state_dict({**state, "layers": state["layers"][:2]})
    train(model, opt, 3, watcher)
    watcher.freeze()
    with pytest.raises(ModelError, match=r"from before blocks\.2 was frozen"):
        watcher.load_state_dict(state)


def test_it_works_beside_a_hold_of_others():
    model, opt, watcher = made((STILL,) * 3, act=True)
    with fl.frozen(model, "blocks.2.1", level="stats"):
        train(model, opt, 3, watcher)
        assert watcher.frozen == BY
        watcher.take_back()
        model.train()
        assert not model.blocks[2][1].training
