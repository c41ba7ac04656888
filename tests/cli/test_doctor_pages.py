"""From what was seen of real loops to the page and to SARIF."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted_loops import f107, m203, marked_line
from torch import nn

import frostline
from frostline.audit.places import Place
from frostline.audit.seen import Crash
from frostline.baseline import Baseline
from frostline.cli.doctor_pages import doctor_page, doctor_sarif, lines_around
from frostline.doctor import Examination, examine
from frostline.findings import Finding, Severity
from frostline.report.contract_tree import grow_contract_tree
from frostline.report.doctor_page import judge, render_doctor


@pytest.fixture(scope="module")
def moved() -> Examination:
    return examine(f107.failing())


@pytest.fixture(scope="module")
def right() -> Examination:
    return examine(f107.twin())


def test_a_frozen_part_that_moved(moved: Examination) -> None:
    page = doctor_page(moved)
    assert (page.title, page.steps, judge(page).claim) == ("Sequential", 4, "1 error")
    (card,) = page.cards
    assert (card.type, card.meant, card.observed) == ("BatchNorm1d", "inferred frozen", "moved")
    line = marked_line(f107.failing, "F107")
    assert [number for number, _ in card.lines] == list(range(line - 2, line + 3))
    assert dict(card.lines)[line] == "logits = model(x)  # <- F107", "the indentation that all share is left out"
    assert card.in_memory
    assert len(card.places) < len(card.finding.paths)
    assert [rule.code for rule in page.rules] == ["F107"]
    (model,) = page.models
    states = grow_contract_tree(model.tensors, model.modules).states
    assert states == {"broken": 6, "held": 8, "trained": 2}
    broken = [tensor for tensor in model.tensors if tensor.state == "broken"]
    assert {tensor.codes for tensor in broken} == {("F107",)}
    assert all(tensor.drift for tensor in broken)
    assert broken[0].written.startswith("written by aten.native_batch_norm at benchmarks/planted_loops/f107.py:")
    assert broken[0].why.startswith("inferred: ")


def test_the_same_loop_done_right(right: Examination) -> None:
    page = doctor_page(right)
    assert judge(page).tone == "good"
    assert page.cards == ()
    (model,) = page.models
    assert grow_contract_tree(model.tensors, model.modules).states == {"held": 14, "trained": 2}
    assert "14 tensors that were to stay did not move" in render_doctor(page)
    assert dict(page.facts)["Contract"] == "declared"


def test_before_and_after(moved: Examination, right: Examination) -> None:
    compared = doctor_page(right, earlier=moved).compared
    assert compared is not None
    assert [finding.code for finding in compared.gone] == ["F107"]
    assert compared.figures[:3] == (
        ("errors", 1, 0),
        ("warnings", 0, 0),
        ("tensors that were to stay, and moved", 6, 0),
    )


def test_what_a_baseline_has_comes_last_and_is_marked(moved: Examination) -> None:
    page = doctor_page(moved, split=Baseline.of(moved).split(moved))
    assert [card.known for card in page.cards] == [True]
    assert judge(page).claim == "Nothing new was found"


def test_flips_become_lanes_with_their_lines() -> None:
    found = examine(m203.failing())
    (model,) = doctor_page(found).models
    timeline = model.modes
    assert timeline is not None
    trunk = next(lane for lane in timeline.lanes if lane.must_eval)
    assert trunk.broken
    assert {module.path for module in model.modules if module.must_eval} == set(found[0].paths)
    assert [flip.mode for flip in trunk.flips][-1] == "train"
    line = marked_line(m203.failing, "M203")
    call = next(call for call in timeline.calls if call.place.endswith(f"m203.py:{line}"))
    assert (call.call, call.mode) == ("net.train()  # <- M203", "train")
    assert sum(lane.modules for lane in timeline.lanes) == len(model.modules)


def test_validation_lies_between_the_steps_and_the_groups_have_their_figures() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1), nn.Linear(1, 1))
    with frostline.watch() as seen:
        optimizer = torch.optim.SGD(
            [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.01}], lr=0.1, weight_decay=0.5
        )
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 2)).sum().backward()
            optimizer.step()
            scheduler.step()
            if optimizer.param_groups[0]["lr"] < 0.05:
                model.eval()
                with torch.no_grad():
                    model(torch.randn(8, 2))
                model.train()
    page = doctor_page(examine(seen))
    (part,) = page.models
    assert part.modes is not None
    (lane,) = part.modes.lanes
    assert [flip.mode for flip in lane.flips] == ["eval", "train"] * 3
    at = [flip.at for flip in lane.flips]
    assert at == sorted(at)
    assert [int(place) for place in at] == [2, 2, 3, 3, 4, 4]
    assert {run.kind for run in part.modes.passes} == {"train-grad", "eval"}
    assert [(call.steps, call.flipped) for call in part.modes.calls] == [("2, 3, 4", 5), ("2, 3, 4", 5)]
    (optimizer_part,) = page.optimizers
    assert optimizer_part.schedulers == ("StepLR",)
    one, two = optimizer_part.groups
    assert (one.tensors, one.trainable, one.orphans, one.frozen, one.weight_decay) == (2, 2, 0, 0, 0.5)
    assert one.rates == (0.1, pytest.approx(0.001))
    assert two.rates == (0.01, pytest.approx(0.0001))
    assert (part.unowned_count, part.unowned) == (2, ("3.weight", "3.bias"))


def test_a_crash_and_what_was_missed_are_on_the_page_and_in_sarif(right: Examination) -> None:
    crash = Crash("ValueError", "shapes differ", Place("train.py", 3), "Traceback ...")
    before = right.seen.crash, right.seen.missed
    right.seen.crash, right.seen.missed = crash, ["model is compiled"]
    try:
        page = doctor_page(right)
        log = json.loads(doctor_sarif(right))
    finally:
        right.seen.crash, right.seen.missed = before
    assert page.crash is not None
    assert page.crash.place == "train.py:3"
    assert page.missed == ("model is compiled",)
    notes = log["runs"][0]["invocations"][0]["toolExecutionNotifications"]
    assert [note["message"]["text"] for note in notes] == [
        "the loop ended with ValueError: shapes differ",
        "not looked at: model is compiled",
    ]


def test_sarif_of_a_real_loop(moved: Examination) -> None:
    run = json.loads(doctor_sarif(moved, known=[]))["runs"][0]
    (result,) = run["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "benchmarks/planted_loops/f107.py", "uriBaseId": "SRCROOT"}
    assert place["region"]["startLine"] == marked_line(f107.failing, "F107")
    assert result["baselineState"] == "new"
    codes = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert codes == moved.checked
    assert codes[result["ruleIndex"]] == "F107"


def test_lines_of_a_file_that_changed_are_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    file.write_text("a = 1\nif a:\n\n    b = model(a)\n    c = 2\n")
    assert lines_around(str(file), 4, "b = model(a)") == [
        (2, "if a:"),
        (3, ""),
        (4, "    b = model(a)"),
        (5, "    c = 2"),
    ]
    assert lines_around(str(file), 5, "c = 2") == [(3, ""), (4, "b = model(a)"), (5, "c = 2")]
    assert lines_around(str(file), 4, "b = other(a)") == []
    assert lines_around(str(file), 40, "") == []
    assert lines_around("", 0, "") == []


def test_a_loop_in_which_nothing_happened() -> None:
    with frostline.watch() as seen:
        pass
    page = doctor_page(examine(seen))
    assert (page.title, judge(page).tone) == ("a loop", "warn")
    assert "No optimizer step was seen" in render_doctor(page)


def test_a_finding_of_information_only_marks_no_tensor(right: Examination) -> None:
    told = Examination(right, right.seen, right.checked, right.sound, {})
    told.append(Finding("O403", Severity.INFO, "kept", "0.0.weight", paths=("0.0.weight",), model="model"))
    page = doctor_page(told)
    assert {tensor.codes for tensor in page.models[0].tensors} == {()}
    told[0] = replace(told[0], severity=Severity.WARNING)
    assert ("O403",) in {tensor.codes for tensor in doctor_page(told).models[0].tensors}
