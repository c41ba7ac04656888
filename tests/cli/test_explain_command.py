"""``frostline explain``: the table, JSON, and exit codes."""

from __future__ import annotations

import json
from typing import Any


def test_the_table_says_what_each_layer_does(command: Any, factory: str):
    done = command("explain", f"{factory}:Net")
    assert (done.code, done.err) == (0, "")
    head, rule, *rows = done.out.splitlines()
    assert head.split() == ["layer", "type", "trains", "mode", "normalizes", "with", "updates", "held"]
    assert set(rule) == {"─", " "}
    assert [row.split()[:4] for row in rows] == [
        ["stem", "Conv2d", "yes", "train"],
        ["norm", "BatchNorm2d", "yes", "train"],
        ["gate", "Linear", "yes", "train"],
        ["out", "Linear", "yes", "train"],
    ]


def test_a_held_part_is_shown_as_held(command: Any, factory: str):
    done = command("explain", f"{factory}:Net", "--freeze", "norm", "--freeze", "stem")
    rows = {row.split()[0]: row.split() for row in done.out.splitlines()[2:]}
    assert done.code == 0
    assert rows["norm"][2:] == ["no", "eval", "running", "no", "state"]
    assert rows["stem"][2:4] == ["no", "eval"]
    assert rows["out"][2:4] == ["yes", "train"]


def test_what_is_frozen_by_half_is_a_finding(command: Any, factory: str):
    """requires_grad=False alone, as most people freeze: the statistics go on learning."""
    done = command("explain", f"{factory}:half_frozen")
    assert done.code == 1
    assert "norm" in done.out.splitlines()[-1] or "norm" in done.out
    data = json.loads(command("explain", f"{factory}:half_frozen", "--json").out)
    assert data["findings"][0]["where"] == "norm"


def test_json_is_all_that_standard_output_has(command: Any, factory: str):
    done = command("explain", f"{factory}:Net", "--json")
    data = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert data["schema_version"] == 1
    assert [row["path"] for row in data["layers"]] == ["stem", "norm", "gate", "out"]
    assert data["layers"][1]["updates"] is True


def test_models_of_libraries(command: Any):
    done = command("explain", "timm/resnet18", "--freeze", "layer1")
    assert done.code == 0
    assert "Traceback" not in done.err
    assert any(row.startswith("layer1.[0-1].bn[1-2] (x4)") for row in done.out.splitlines())


def test_what_is_not_there_is_named(command: Any, factory: str):
    done = command("explain", f"{factory}:Net", "--freeze", "nrom")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: pattern 'nrom' matched nothing in Net")
    assert "norm" in done.err
    done = command("explain", "resnet18")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: no model 'resnet18': it has no prefix")
    assert "fix: --model timm/resnet18" in done.err
