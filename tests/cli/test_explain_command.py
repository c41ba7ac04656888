"""``frostline explain``: the table, JSON, and exit codes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch


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
    assert "fix: timm/resnet18" in done.err


def test_a_checkpoint_is_loaded_whole_and_said(
    command: Any, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(Path.cwd())
    net = importlib.import_module(factory).Net(num_classes=6)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "a.pth")
    done = command("explain", f"{factory}:Net", "--checkpoint", tmp_path / "a.pth")
    assert (done.code, done.err) == (0, "")
    first, empty, head, *_ = done.out.splitlines()
    assert first.startswith("loaded a.pth -> Net: 11/11 tensors, ")
    assert first.endswith("; container 'state_dict'")
    assert (empty, head.split()[:3]) == ("", ["layer", "type", "trains"])
    data = json.loads(command("explain", f"{factory}:Net", "--checkpoint", tmp_path / "a.pth", "--json").out)
    assert data["checkpoint"] == {"path": str(tmp_path / "a.pth"), "summary": first.removeprefix("loaded ")}
    assert json.loads(command("explain", f"{factory}:Net", "--json").out)["checkpoint"] is None


def test_a_checkpoint_of_another_model_is_refused(command: Any, factory: str, tmp_path: Path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "a.pth")
    done = command("explain", f"{factory}:Net", "--checkpoint", tmp_path / "a.pth")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: a.pth does not fit Net; nothing was changed\n")
    assert "0 % of the model's tensors would come from the checkpoint" in done.err
    done = command("explain", f"{factory}:Net", "--checkpoint", tmp_path / "b.pth")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: the checkpoint {tmp_path / 'b.pth'} does not exist\n")


def test_the_page_says_what_the_table_says(command: Any, factory: str, tmp_path: Path):
    done = command("explain", f"{factory}:half_frozen", "--html", "layers.html")
    page = Path("layers.html").read_text()
    assert done.code == 1
    for word in ("norm", "BatchNorm2d", "ema(0.1)", "F107"):
        assert word in done.out
        assert word in page
    refused = command("explain", f"{factory}:Net", "--html", "layers.txt")
    assert (refused.code, refused.out) == (2, "")
    assert "--html layers.html" in refused.err
