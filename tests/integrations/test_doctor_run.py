"""The doctor over the first steps of a run."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.audit import Contract
from frostline.errors import FindingsFound, ModelError, NothingSelected
from frostline.integrations.doctor_run import DoctorRun


def build() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def steps(run: DoctorRun, model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[bool]:
    due: list[bool] = []
    for _ in range(count):
        optimizer.zero_grad()
        model.train()(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        due.append(run.step())
        if due[-1]:
            run.end()
    return due


def test_a_mistake_is_found_in_the_first_steps_and_the_watch_is_taken_off():
    model, optimizer = build()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    call = nn.Module.__call__
    run = DoctorRun(steps=2)
    run.begin(model, [optimizer])
    assert nn.Module.__call__ is not call
    assert steps(run, model, optimizer, 4) == [False, True, False, False]
    assert nn.Module.__call__ is call
    assert not run.watching
    assert "F107" in [finding.code for finding in run.end()]
    assert len(run.end().seen.steps) == 2


def test_a_held_trunk_is_found_right():
    model, optimizer = build()
    hold = fl.freeze(model, "0", "1", optimizer=optimizer)
    run = DoctorRun(steps=2, fail_on="info")
    run.begin(model, [optimizer])
    steps(run, model, optimizer, 2)
    assert run.end() == []
    run.judge()
    assert run.end().sound
    hold.verify()


def test_results_are_equal_to_the_bit():
    plain, optimizer = build()
    idle = DoctorRun(steps=3)
    torch.manual_seed(1)
    steps(idle, plain, optimizer, 3)
    watched, optimizer = build()
    run = DoctorRun(steps=3)
    run.begin(watched, [optimizer])
    torch.manual_seed(1)
    steps(run, watched, optimizer, 3)
    assert not fl.snapshot(plain).diff(watched)


@pytest.mark.parametrize("fail_on", ["never", "error", "warning", "info"])
def test_it_fails_from_a_severity_on(fail_on):
    model, optimizer = build()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    run = DoctorRun(steps=2, fail_on=fail_on)
    run.judge()  # before anything was seen
    run.begin(model, [optimizer])
    steps(run, model, optimizer, 2)
    run.end()
    if fail_on != "never":
        with pytest.raises(FindingsFound, match=r"the doctor found \d+ mistakes in 2 steps\n  .*F107") as caught:
            run.judge()
        assert caught.value.exit_code == 1
        assert {finding.code for finding in caught.value.findings} >= {"F107"}
    else:
        run.judge()


def test_a_run_that_ends_early_or_crashes_is_judged_as_far_as_it_went():
    model, optimizer = build()
    run = DoctorRun(steps=100)
    run.begin(model, [optimizer])
    steps(run, model, optimizer, 2)
    examination = run.end(ValueError("the data ended"))
    assert examination.seen.ended == "crashed"
    assert examination.seen.crash is not None
    assert examination.seen.crash.text == "the data ended"
    assert len(examination.seen.steps) == 2


def test_what_is_wrong_with_the_call_is_said():
    with pytest.raises(ModelError, match=r"Doctor\(steps=0\)"):
        DoctorRun(steps=0)
    with pytest.raises(ModelError, match="expected one of error, warning, info, never"):
        DoctorRun(fail_on="all")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="did not begin"):
        DoctorRun().end()
    call = nn.Module.__call__
    run = DoctorRun(contract=Contract(frozen=("trunk",)))
    model, optimizer = build()
    with pytest.raises(NothingSelected, match="trunk"):
        run.begin(model, [optimizer])
    assert not run.watching
    assert nn.Module.__call__ is call


def test_it_is_written_as_the_command_writes_it(tmp_path):
    model, optimizer = build()
    run = DoctorRun(steps=1)
    run.begin(model, [optimizer])
    steps(run, model, optimizer, 1)
    read = json.loads(run.write(tmp_path / "new" / "doctor.json").read_text())
    assert read == json.loads(json.dumps(run.end().to_json()))
    assert read["steps"] == 1
