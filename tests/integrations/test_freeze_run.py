"""One freeze over a training run: what is held when, what is told, and what comes back."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import CannotFreeze, FrozenStateMoved, HeldAnew, ModelError, NothingSelected
from frostline.integrations.freeze_run import FreezeRun
from frostline.optim import Epoch, Plateau, Stage, Step, Unfreeze, gradual


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Sequential(nn.Linear(4, 4), nn.Dropout()), nn.Linear(4, 2)
    )


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A step with zero gradients left in, as momentum and weight decay like it."""
    optimizer.zero_grad(set_to_none=False)
    model.train()(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()


def epoch(run: FreezeRun, model: nn.Module, optimizer: torch.optim.Optimizer, metric: float | None = None) -> list[str]:
    for _ in range(2):
        step(model, optimizer)
    return run.epoch_end(metric)


def begun(run: FreezeRun) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = build()
    run.begin(model)
    optimizer = optimizer_of(model)
    run.join(model, [optimizer])
    return model, optimizer


def test_a_part_is_held_to_the_end_and_comes_back_as_it_was():
    model = build()
    model[0][0].bias.requires_grad_(False)
    before = fl.snapshot(model)
    run = FreezeRun(("0", "1"))
    run.begin(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"2.weight", "2.bias"}
    optimizer = optimizer_of(model)
    run.join(model, [optimizer])
    for _ in range(3):
        assert epoch(run, model, optimizer) == []
        run.verify()
        run.verify("buffers")
    report = run.end()
    assert not report.moved
    assert all(row["equal"] for row in report.held.values())
    assert {"0.1.running_mean", "0.0.weight", "1.1.training"} <= set(report.held)
    assert report.verified == 7  # join verifies too
    moved = {change.path for change in before.diff(model).moved}
    assert moved == {"2.weight", "2.bias"}
    assert not run.running


def test_by_hand_it_would_have_moved():
    """The failing twin: the same loop, frozen by `requires_grad` and `eval()`."""
    model = build()
    model[0].requires_grad_(False).eval()
    optimizer = optimizer_of(model)
    before = fl.snapshot(model)
    for _ in range(3):
        step(model, optimizer)
    assert {"0.1.running_mean", "0.1.running_var"} <= {change.path for change in before.diff(model).moved}


def test_a_schedule_is_held_before_optimizers_are_made_and_thawed_in_its_time():
    schedule = Unfreeze((Stage(("1",), Epoch(1)), Stage(("0",), Epoch(2))))
    run = FreezeRun(schedule=schedule)
    model, optimizer = begun(run)
    start = fl.snapshot(model, values=True)
    assert not any(p.requires_grad for part in (model[0], model[1]) for p in part.parameters())
    assert epoch(run, model, optimizer) == ["1"]
    assert {change.path.split(".")[0] for change in start.diff(model).moved if change.kind == "parameter"} == {"2"}
    assert epoch(run, model, optimizer) == ["0"]
    assert model[0][1].training
    assert epoch(run, model, optimizer) == []
    report = run.end()
    assert [(each.epoch, each.parts) for each in report.unfrozen] == [(1, ("1",)), (2, ("0",))]
    assert report.held == {}
    assert "unfrozen after epoch 2, step 4: 0" in str(report)


def test_what_the_schedule_names_is_left_to_it_and_the_rest_stays():
    run = FreezeRun(("0", "1"), schedule=Unfreeze((Stage(("1",), Epoch(1)),)))
    model, optimizer = begun(run)
    for _ in range(2):
        epoch(run, model, optimizer)
    assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 4
    report = run.end()
    assert {path.split(".")[0] for path in report.held} == {"0"}
    assert not report.moved
    assert all(p.requires_grad for p in model.parameters())


def test_a_schedule_may_be_made_of_the_model_and_have_all_that_was_selected():
    run = FreezeRun(("0", "1"), schedule=lambda model: gradual(model, every=Epoch(1), head="2"))
    model, optimizer = begun(run)
    while any(not p.requires_grad for p in model.parameters()):
        assert epoch(run, model, optimizer)
    assert run.paths == []
    run.end()


def test_steps_and_plateaus_come_in_the_run():
    run = FreezeRun(schedule=Unfreeze((Stage(("1",), Step(3)), Stage(("0",), Plateau(1)))))
    model, optimizer = begun(run)
    for number in range(3):
        assert model[1][0].weight.requires_grad == (number > 2)
        step(model, optimizer)
    assert model[1][0].weight.requires_grad
    with pytest.raises(ModelError, match="no metric"):
        run.epoch_end()
    assert epoch(run, model, optimizer, 0.5) == []
    assert epoch(run, model, optimizer, 0.5) == ["0"]
    run.end()


def test_a_run_goes_on_where_another_stood():
    schedule = Unfreeze((Stage(("1",), Epoch(1)), Stage(("0",), Epoch(3))))
    first = FreezeRun(schedule=schedule)
    model, optimizer = begun(first)
    epoch(first, model, optimizer)
    epoch(first, model, optimizer)
    state = json.loads(json.dumps(first.state_dict()))
    first.end()

    second = FreezeRun(schedule=schedule)
    model = build()
    second.begin(model)
    second.load_state_dict(state)
    optimizer = optimizer_of(model)
    second.join(model, [optimizer])
    assert model[1][0].weight.requires_grad
    assert not model[0][0].weight.requires_grad
    assert epoch(second, model, optimizer) == ["0"]
    assert [each.epoch for each in second.end().unfrozen] == [1, 3]


class TestResumed:
    """Weights were loaded after the run began, so that what it held then says nothing of them."""

    schedule = Unfreeze((Stage(("1",), Epoch(1)),))

    def saved(self) -> tuple[dict, dict]:
        run = FreezeRun(("0",), schedule=self.schedule)
        model, optimizer = begun(run)
        epoch(run, model, optimizer)
        state, weights = json.loads(json.dumps(run.state_dict())), {k: v.clone() for k, v in model.state_dict().items()}
        run.end()
        return state, weights

    def resumed(self, state: dict, weights: dict) -> FreezeRun:
        run = FreezeRun(("0",), schedule=self.schedule)
        torch.manual_seed(1)
        self.model = nn.Sequential(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
            nn.Sequential(nn.Linear(4, 4), nn.Dropout()),
            nn.Linear(4, 2),
        )
        run.begin(self.model)
        self.model.load_state_dict(weights)
        run.load_state_dict(state)
        run.join(self.model, [optimizer_of(self.model)])
        return run

    def test_another_start_is_no_matter(self):
        run = self.resumed(*self.saved())
        assert (run.epochs, run.waits_for_metric) == (1, False)
        assert self.model[1][0].weight.requires_grad
        assert not run.end().moved

    def test_without_the_state_it_is_held_to_be_moved(self):
        run = FreezeRun(("0",))
        model = build()
        run.begin(model)
        model[0][0].weight.data.add_(1)
        with pytest.raises(FrozenStateMoved):
            run.join(model, [optimizer_of(model)])
        run.abandon()

    @pytest.mark.parametrize("entry", ["0.0.weight", "0.1.running_mean"])
    def test_a_checkpoint_that_has_other_values_is_named(self, entry: str):
        state, weights = self.saved()
        weights[entry] += 1
        with pytest.raises(FrozenStateMoved, match=rf"1 of 7 held entries .* checkpoint's run held: {entry}") as caught:
            self.resumed(state, weights)
        assert caught.value.diff.paths == [entry]

    def test_a_schedule_that_is_gone_is_refused(self):
        state, _ = self.saved()
        run = FreezeRun(("0",))
        begun(run)
        with pytest.raises(ModelError, match="this one has none"):
            run.load_state_dict(state)
        run.end()

    def test_a_state_of_another_version_is_refused(self):
        with pytest.raises(ModelError, match="version 7"):
            FreezeRun(("0",)).load_state_dict({"schema_version": 7})


def test_what_the_schedule_has_may_be_left_free_until_the_optimizer_is_made():
    run = FreezeRun(schedule=Unfreeze((Stage(("0",), Step(1)),)))
    model = build()
    run.begin(model, ahead="lasting")
    assert run.running
    assert all(p.requires_grad for p in model.parameters())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    run.join(model, [optimizer])
    assert not model[0][0].weight.requires_grad
    step(model, optimizer)
    assert model[0][0].weight.requires_grad
    assert [(each.epoch, each.step) for each in run.end().unfrozen] == [(0, 1)]
    assert not run.running


def test_the_state_of_another_schedule_is_refused():
    first = FreezeRun(schedule=Unfreeze((Stage(("1",), Epoch(1)),)))
    begun(first)
    second = FreezeRun(schedule=Unfreeze((Stage(("0",), Epoch(1)),)))
    begun(second)
    with pytest.raises(ModelError):
        second.load_state_dict(first.state_dict())
    first.end()
    second.end()


class TestReCreated:
    """Strategies that put new parameters in the place of those that were frozen (pytorch#171709)."""

    @staticmethod
    def run_and_model(*, trainable: bool) -> tuple[FreezeRun, nn.Sequential]:
        run = FreezeRun(("0",))
        model = build()
        run.begin(model)
        old = model[0][0].weight
        model[0][0].weight = nn.Parameter(old.detach().clone(), requires_grad=trainable)
        return run, model

    @pytest.mark.parametrize(("trainable", "said"), [(True, "; 1 of them would have trained"), (False, "")])
    def test_they_are_named_and_held_again(self, trainable: bool, said: str):
        run, model = self.run_and_model(trainable=trainable)
        optimizer = optimizer_of(model)
        with pytest.warns(
            HeldAnew, match=rf"1 held parameters were re-created.*again{said}: 0\.0\.weight\n.*equal to the bit"
        ):
            run.join(model, [optimizer])
        assert not model[0][0].weight.requires_grad
        for _ in range(2):
            step(model, optimizer)
        report = run.end()
        assert report.anew == ("0.0.weight",)
        assert not report.moved
        assert "held again: 0.0.weight" in str(report)

    def test_other_values_are_named(self):
        run, model = self.run_and_model(trainable=False)
        with torch.no_grad():
            model[0][0].weight.mul_(2)
        with pytest.warns(HeldAnew, match=r"hold other values than before, or a shard of them: 0\.0\.weight"):
            run.join(model, [optimizer_of(model)])
        run.end()

    def test_without_joining_it_would_have_trained(self):
        """The failing twin."""
        run, model = self.run_and_model(trainable=True)
        optimizer = optimizer_of(model)
        step(model, optimizer)
        with pytest.raises(FrozenStateMoved, match=r"0\.0\.weight"):
            run.verify()
        run.abandon()


def test_what_moved_between_freezing_and_training_is_named():
    run = FreezeRun(("0",))
    model = build()
    run.begin(model)
    with torch.no_grad():
        model[0][0].weight.add_(1)
    with pytest.raises(FrozenStateMoved, match=r"0\.0\.weight"):
        run.join(model, [optimizer_of(model)])
    report = run.end()
    assert report.moved == ("0.0.weight",)
    assert not report.held["0.0.weight"]["equal"]
    assert "moved: 0.0.weight" in str(report)
    assert model[0][0].weight.requires_grad


@pytest.mark.parametrize(
    ("selectors", "schedule"),
    [(("nothing",), None), ((), Unfreeze((Stage(("nothing",), Epoch(1)),))), (("nothing", "0"), None)],
)
def test_what_selects_nothing_leaves_the_model_as_it_was(selectors, schedule):
    model = build()
    before = fl.snapshot(model)
    run = FreezeRun(selectors, schedule=schedule)
    with pytest.raises(NothingSelected, match="nothing"):
        run.begin(model)
    assert not before.diff(model)
    assert not run.running


def test_an_error_in_the_second_hold_takes_the_first_back():
    model = build()
    model[1].append(nn.BatchNorm1d(4, track_running_stats=False))
    before = fl.snapshot(model)
    run = FreezeRun(("0",), schedule=Unfreeze((Stage(("1",), Epoch(1)),)))
    with pytest.raises(CannotFreeze, match="batch norm without running statistics"):
        run.begin(model)
    assert not before.diff(model)
    assert all(p.requires_grad for p in model.parameters())


def test_an_optimizer_without_what_will_train_is_refused_and_nothing_stays_held():
    run = FreezeRun(schedule=Unfreeze((Stage(("0",), Epoch(1)),)))
    model = build()
    run.begin(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(ModelError):
        run.join(model, [optimizer])
    run.abandon()
    assert all(p.requires_grad for p in model.parameters())
    assert model.train()[0][1].training


def test_a_schedule_takes_one_optimizer():
    run = FreezeRun(schedule=Unfreeze((Stage(("0",), Epoch(1)),)))
    model = build()
    run.begin(model)
    with pytest.raises(ModelError):
        run.join(model, [optimizer_of(model), optimizer_of(model)])
    run.abandon()


def test_several_optimizers_are_guarded():
    run = FreezeRun(("0",))
    model = build()
    run.begin(model)
    optimizers = [torch.optim.AdamW(model[0].parameters(), lr=0.1), optimizer_of(model)]
    run.join(model, optimizers)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for optimizer in optimizers:
        optimizer.step()
        for p in model[0].parameters():
            assert p.grad is None
            p.grad = torch.zeros_like(p)
    run.verify()
    run.end()


def test_it_may_begin_again_after_its_end_and_not_before():
    run = FreezeRun(("0",))
    model = build()
    run.begin(model)
    with pytest.raises(CannotFreeze, match="begun already"):
        run.begin(build())
    run.end()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.begin(model)
    run.end()


def test_nothing_named_is_an_error():
    with pytest.raises(CannotFreeze, match=r"Freeze\(\): nothing was named"):
        FreezeRun()


def test_a_level_holds_that_much():
    run = FreezeRun(("0",), level="stats")
    model, optimizer = begun(run)
    step(model, optimizer)
    report = run.end()
    assert set(report.held) == {
        "0.1.running_mean",
        "0.1.running_var",
        "0.1.num_batches_tracked",
        "0.1.training",
    }
    assert not report.moved


def test_the_report_is_written_whole(tmp_path):
    run = FreezeRun(("0",), schedule=Unfreeze((Stage(("1",), Epoch(1)),)))
    model, optimizer = begun(run)
    epoch(run, model, optimizer)
    report = run.end()
    path = report.write(tmp_path / "new" / "freeze.json")
    read = json.loads(path.read_text())
    assert read == report.to_json()
    assert read["schema_version"] == 1
    assert read["unfrozen"] == [{"epoch": 1, "step": 2, "parts": ["1"]}]
    assert "&lt;" not in report._repr_html_()
    assert "equal to the bit" in report._repr_html_()
