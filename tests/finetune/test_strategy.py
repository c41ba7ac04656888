"""Strategies: which part trains at which rate, and what begins to train when; in groups, schedules and whole runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from frostline.finetune import FinetuneConfig, resume, run
from frostline.finetune.config import ConfigError
from frostline.finetune.strategy import STRATEGIES, groups_for, rate_factor, told_of_epochs, unfreezing_for
from frostline.optim import Epoch
from frostline.state import snapshot
from frostline.tasks import TaskModel


def trunk() -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(5)))


def model() -> TaskModel:
    found = TaskModel(trunk(), {"original": nn.Linear(4, 7), "new": nn.Linear(4, 2)})
    found.heads["original"].requires_grad_(False)
    return found


# Groups


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_parameter_that_trains_is_in_one_group_and_the_head_has_the_rate_asked_for(strategy: str):
    net = model()
    groups = groups_for(net, "new", strategy, 0.01)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    rates = {group["name"].removesuffix(", no decay"): group["lr"] for group in groups}
    assert rates["head"] == 0.01
    trunk_rate = 0.01 if strategy in {"head", "full"} else 0.001
    assert all(rate == pytest.approx(trunk_rate) for name, rate in rates.items() if name != "head")
    per_layer = {name for name in rates if name.startswith("layer")}
    assert bool(per_layer) == (strategy in {"gradual", "probe-then-tune"})
    for group in groups:
        plain = all(parameter.ndim == 1 for parameter in group["params"])
        assert group["weight_decay"] == (0.0 if plain else 0.01)


def test_what_is_held_when_the_groups_are_made_is_left_out():
    net = model()
    net.trunk.requires_grad_(False)
    assert {group["name"] for group in groups_for(net, "new", "head", 0.1)} == {"head", "head, no decay"}


# Schedules


def test_gradual_goes_from_the_head_down_and_is_done_by_two_thirds():
    schedule = unfreezing_for(model(), "gradual", 6, 100)
    assert schedule is not None
    assert [stage.at for stage in schedule.stages] == [Epoch(1), Epoch(2), Epoch(3)]
    assert [set(stage.parts) for stage in schedule.stages] == [
        {"trunk.3", "trunk.4"},
        {"trunk.1", "trunk.2"},
        {"trunk.0"},
    ]
    assert {stage.warmup for stage in schedule.stages} == {25}


def test_probe_then_tune_joins_at_half_time_and_leaves_out_what_stays():
    net = model()
    net.trunk[0].requires_grad_(False)
    schedule = unfreezing_for(net, "probe-then-tune", 8, 10)
    assert schedule is not None
    (stage,) = schedule.stages
    assert stage.at == Epoch(4)
    assert not any("trunk.0" in str(part) or "heads" in str(part) for part in stage.parts)
    assert unfreezing_for(net, "full", 8, 10) is None


def test_cosine_begins_at_one_and_ends_near_zero():
    factors = [rate_factor("cosine", step, 50) for step in range(50)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < 0.01
    assert {rate_factor("constant", step, 50) for step in range(50)} == {1.0}


@pytest.mark.parametrize("strategy", ["gradual", "probe-then-tune"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 6])
def test_too_few_epochs_are_said_where_the_schedule_has_them(strategy: str, epochs: int):
    schedule = unfreezing_for(model(), strategy, epochs, 10)
    assert schedule is not None
    never = all(isinstance(stage.at, Epoch) and stage.at.number >= epochs for stage in schedule.stages)
    told = " ".join(told_of_epochs(strategy, epochs))
    assert ("does not train" in told) == never
    assert ("in one go" in told) == (strategy == "gradual" and len(schedule.stages) == 1 and not never)


# Settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "all"}, "--strategy all: there is no such one.\n  fix: one of head, full, discriminative"),
        ({"lr_schedule": "linear"}, "--lr-schedule linear: there is no such one."),
        ({"strategy": "full", "naive": True}, "--naive with --strategy full"),
    ],
)
def test_settings_that_make_no_sense(options: Any, said: str):
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig(**options)
    assert said in str(caught.value)


# Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The embedded job under every strategy."""
    folder = tmp_path_factory.mktemp("strategies")
    config = FinetuneConfig(epochs=4, lr_schedule="cosine", naive=False, device="cpu")
    return {name: run(replace(config, strategy=name), folder / name) for name in STRATEGIES}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_trunk_moves_only_where_it_is_meant_to(strategy: str, runs: dict[str, Any]):
    result = runs[strategy]
    assert result.certificate["moved"] == []
    held = {path for path in result.certificate["held"] if path.startswith("trunk")}
    assert bool(held) == (strategy == "head")
    assert result.certificate["probe"]["digit"]["logits_equal"] == (strategy == "head")
    rates = [row.rates for row in result.rows if row.phase == "parity"]
    trunk = [
        max(max(r) for name, r in epoch.items() if not name.startswith("head")) for epoch in rates if len(epoch) > 2
    ]
    if strategy == "gradual":
        first = rates[0]
        assert all(set(values) == {0.0} for name, values in first.items() if not name.startswith("head"))
        assert sum(max(values) > 0 for values in rates[1].values()) < sum(
            max(values) > 0 for values in rates[2].values()
        )
    if strategy == "probe-then-tune":
        assert [value > 0 for value in trunk] == [False, False, True, True]
    if strategy in {"full", "discriminative"}:
        assert all(value > 0 for value in trunk)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["gradual", "probe-then-tune", "discriminative"])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_that_is_resumed_comes_to_the_same_result(
    strategy: str, epoch: int, runs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped after an epoch of the second phase, in the middle of the schedule."""
    from frostline.finetune import job

    class Stopped(Exception):
        pass

    save = job._Job._save

    def save_and_stop(self: Any, net: Any, optimizer: Any, name: str, unfreezing: str = "") -> None:
        save(self, net, optimizer, name, unfreezing)
        if name == f"parity-epoch-{epoch}":
            raise Stopped

    config = FinetuneConfig(epochs=4, lr_schedule="cosine", naive=False, device="cpu", strategy=strategy)
    monkeypatch.setattr(job._Job, "_save", save_and_stop)
    with pytest.raises(Stopped):
        run(config, tmp_path / "run")
    monkeypatch.undo()
    result = resume(tmp_path / "run")
    assert not snapshot(result.problem.model).diff(runs[strategy].problem.model).where("parameter", "buffer").moved
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    wanted = [row.to_json() for row in runs[strategy].rows]
    timeless = {"seconds": 0, "spent": {}}
    assert [{**row, **timeless} for row in rows] == [json.loads(json.dumps({**row, **timeless})) for row in wanted]


@pytest.mark.slow
def test_the_report_shows_the_rates(runs: dict[str, Any]):
    page = runs["gradual"].page.read_text()
    assert "Learning rate" in page
    assert "layer 1" in page
