"""``frostline inspect``, ``diff``, ``plan``, ``convert`` and ``verify``: tables, JSON, refusals and exit codes."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from frostline.cli.checkpoint_inputs import is_plan

RESNET20 = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "checkpoints" / "resnet20-12fca82f.th"


@pytest.fixture
def net(factory: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A small net, with its weights in ``a.pth``."""
    monkeypatch.syspath_prepend(Path.cwd())
    model = importlib.import_module(factory).Net(num_classes=6)
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, "a.pth")
    return model


def refused(done: Any, code: int, *said: str) -> None:
    """One message that begins with what is wrong; no result, no traceback."""
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    for part in said:
        assert part in done.err


# inspect


def test_inspect_says_what_is_in_it(command: Any, net: nn.Module):
    done = command("inspect", "a.pth")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("a.pth: torch, 11 tensors, ")
    assert lines[1:4] == [
        "  container 'state_dict'",
        "  prefix 'module.' stripped",
        "  1 norm layers with running statistics, 1 with num_batches_tracked",
    ]
    data = json.loads(command("inspect", "a.pth", "--json").out)
    assert (data["schema_version"], data["tensors"], data["norms"]) == (1, 11, 1)
    assert [part["path"] for part in data["parts"]] == ["stem", "norm", "gate", "out"]
    assert sum(part["elements"] for part in data["parts"]) == sum(v.numel() for v in net.state_dict().values())


def test_inspect_lists_several(command: Any, net: nn.Module):
    safetensors.torch.save_file({"head.weight": torch.ones(5, 5)}, "head.safetensors")
    done = command("inspect", "a.pth", "head.safetensors")
    assert done.code == 0
    assert "in all" in done.out
    assert "head.safetensors  safetensors  1" in done.out
    assert len(json.loads(command("inspect", "a.pth", "head.safetensors", "--json").out)) == 2


class Creates:
    def __reduce__(self) -> Any:
        return os.open, ("evil", os.O_CREAT)


def test_inspect_runs_nothing_and_ends_with_3(command: Any, net: nn.Module):
    torch.save({"model": Creates()}, "evil.pth")
    refused(command("inspect", "evil.pth"), 3, "wants to import and call code; nothing of it was run", "open")
    assert not Path("evil").exists()
    Path("cut.pth").write_bytes(Path("a.pth").read_bytes()[:-300])
    refused(command("inspect", "cut.pth"), 3, "cut.pth", "fix: copy or download it again")
    refused(command("inspect", "none.pth"), 2, "none.pth does not exist")
    assert command("inspect", "evil.pth", "--allow-pickle").code == 2  # it ran, and holds no tensors
    assert Path("evil").exists()


def test_two_candidates_until_one_is_taken(command: Any, net: nn.Module):
    torch.save({"teacher": net.state_dict(), "student": net.state_dict()}, "two.pth")
    refused(command("inspect", "two.pth"), 2, "tensors in 2 places", "take='teacher'")
    assert "container 'student'" in command("inspect", "two.pth", "--take", "student").out


# diff


def test_diff_tells_at_a_glance_that_statistics_moved(command: Any, net: nn.Module):
    net.train()
    with torch.no_grad():
        net(torch.randn(4, 3, 32, 32))
    torch.save(net.state_dict(), "b.pth")
    done = command("diff", "a.pth", "b.pth")
    assert (done.code, done.err) == (1, "")
    assert "a.pth: container 'state_dict'; prefix 'module.' stripped" in done.out
    verdict = next(line for line in done.out.splitlines() if line.startswith("norm"))
    assert "equal to the bit" in verdict
    assert "norm statistics moved" in verdict
    data = json.loads(command("diff", "a.pth", "b.pth", "--json").out)
    moved = {row["path"] for row in data["moved"] if row["change"] == "changed"}
    assert moved == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_diff_of_equal_files_is_0(command: Any, net: nn.Module):
    torch.save(net.state_dict(), "b.pth")
    assert command("diff", "a.pth", "b.pth").code == 0
    torch.save({f"body.{name}": value for name, value in net.state_dict().items()}, "c.pth")
    assert command("diff", "a.pth", "c.pth").code == 1
    assert command("diff", "c.pth", "a.pth", "--rename", "body. -> ").code == 0
    assert command("diff", "a.pth", "b.pth", "--no-values").code == 0
    refused(command("diff", "a.pth", "b.pth", "--rename", "x -> y"), 2, "rename x -> y: the rule matches none")


# plan, convert, verify


def test_plan_convert_verify(command: Any, net: nn.Module, factory: str):
    done = command("plan", "a.pth", "--model", f"{factory}:Net", "-o", "plan.json")
    assert (done.code, done.err) == (0, "plan written to plan.json\n")
    assert done.out.startswith("a.pth -> Net: 11 of 11 tensors\n")
    done = command("convert", "a.pth", "plan.json", "b.safetensors")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("b.safetensors: 11 tensors, ")
    written = safetensors.torch.load_file("b.safetensors")
    assert written.keys() == net.state_dict().keys()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in written.items())
    done = command("verify", "a.pth", "b.safetensors")
    assert (done.code, done.out) == (0, "holds: 11 equal, by the plan in its header\n")
    written["out.bias"][0] += 1
    with safetensors.safe_open("b.safetensors", "pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(written, "b.safetensors", metadata)
    done = command("verify", "a.pth", "b.safetensors")
    assert done.code == 1
    assert done.out.startswith("does not hold: ")
    assert "1 differs" in done.out
    assert json.loads(command("verify", "a.pth", "b.safetensors", "--json").out)["holds"] is False


def test_an_incomplete_plan_is_1_and_says_what_would_allow_it(command: Any, net: nn.Module, factory: str):
    state = {name: value for name, value in net.state_dict().items() if not name.startswith("out")}
    torch.save({**state, "queue": torch.ones(3)}, "part.pth")
    job = ["plan", "part.pth", "--model", f"{factory}:Net"]
    done = command(*job, "-o", "plan.json")
    assert done.code == 1
    assert "fix: if that is meant: keep='out', drop='queue'" in done.out
    refused(command("convert", "part.pth", "plan.json", "b.safetensors"), 2, "is an incomplete plan")
    assert not Path("b.safetensors").exists()
    done = command(*job, "--keep", "out", "--drop", "queue", "--json")
    data = json.loads(done.out)
    assert done.code == 0
    assert data["complete"] is True
    assert {row["verdict"] for row in data["rows"]} == {"same", "kept-init", "dropped"}


@pytest.mark.real_data
def test_ambiguous_is_1_until_it_is_accepted(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    if not RESNET20.is_file():
        pytest.skip(f"REAL DATA ABSENT: {RESNET20} is not there")
    Path("swapped_of_tests.py").write_text(
        "from renamed_resnet20 import Renamed\n"
        "def build():\n"
        "    return Renamed(order=('conv_a', 'norm_b', 'conv_b', 'norm_a'))\n"
    )
    monkeypatch.syspath_prepend(Path.cwd())
    job = ["plan", RESNET20, "--model", "swapped_of_tests:build"]
    done = command(*job)
    assert done.code == 1
    assert "ambiguous (tied): 72" in done.out
    assert "accept_ambiguous=True" in done.out
    done = command(*job, "--accept-ambiguous")
    assert done.code == 0
    assert "97 of 97 tensors" in done.out


def test_models_of_libraries_and_what_cannot_be_used(command: Any, net: nn.Module, factory: str):
    done = command("plan", "a.pth", "--model", "timm/test_resnet")
    assert done.code == 1
    assert "incomplete" in done.out
    refused(command("plan", "a.pth", "--model", "timm/resnetttt"), 2, "resnetttt")
    refused(command("plan", "a.pth", "--model", f"{factory}:Net", "--keep", "fc"), 2, "nearest")
    refused(command("plan", "a.pth", "--model", f"{factory}:Net", "--adapt", "wings"), 2, "there is no adapter 'wings'")
    refused(command("convert", "a.pth", "none.json", "b.safetensors"), 2, "the plan none.json cannot be read")
    Path("plan.json").write_text("[]")
    refused(command("convert", "a.pth", "plan.json", "b.safetensors"), 2, "plan.json holds no plan")


def test_names_with_control_characters_are_written_out(command: Any, net: nn.Module, factory: str):
    hostile = "\x1b]0;owned\x07\x1b[2J.weight"
    torch.save({**net.state_dict(), hostile: torch.ones(1)}, "a.pth")
    torch.save(net.state_dict(), "b.pth")
    for job in (["inspect", "a.pth"], ["diff", "a.pth", "b.pth"], ["plan", "a.pth", "--model", f"{factory}:Net"]):
        done = command(*job)
        assert "\x1b" not in done.out + done.err
        assert "\x07" not in done.out + done.err
        assert "\\x1b]0;owned\\x07" in done.out


def test_what_cannot_be_written_is_said(command: Any, net: nn.Module, factory: str):
    refused(
        command("plan", "a.pth", "--model", f"{factory}:Net", "-o", "nowhere/p.json"), 2, "nowhere/p.json cannot be"
    )
    command("plan", "a.pth", "--model", f"{factory}:Net", "-o", "plan.json")
    done = command("convert", "a.pth", "plan.json", "nowhere/b.safetensors")
    refused(done, 2, "nowhere/b.safetensors cannot be written: No such file or directory")


def test_convert_replaces_nothing_unless_told_to(command: Any, net: nn.Module, factory: str):
    command("plan", "a.pth", "--model", f"{factory}:Net", "-o", "plan.json")
    before = Path("a.pth").read_bytes()
    refused(command("convert", "a.pth", "plan.json", "a.pth", "--force"), 2, "that is what is read", "another name")
    Path("c.safetensors").hardlink_to("a.pth")
    refused(command("convert", "a.pth", "plan.json", "c.safetensors", "--force"), 2, "that is what is read")
    refused(command("convert", "a.pth", "plan.json", "plan.json", "--force"), 2, "that is what is read")
    assert Path("a.pth").read_bytes() == before
    refused(command("convert", "a.pth", "plan.json", "b.pth"), 2, "its name should say so", "fix: b.safetensors")
    assert command("convert", "a.pth", "plan.json", "b.safetensors").code == 0
    Path("b.safetensors").write_bytes(b"mine")
    refused(command("convert", "a.pth", "plan.json", "b.safetensors"), 2, "it exists already", "or --force")
    assert Path("b.safetensors").read_bytes() == b"mine"
    assert command("convert", "a.pth", "plan.json", "b.safetensors", "--force").code == 0
    assert command("verify", "a.pth", "b.safetensors").code == 0
    assert command("convert", "a.pth", "plan.json", "step-0", "--to", "distributed").code == 0


def test_arguments_in_another_order_are_told_and_lead_to_no_loss(command: Any, net: nn.Module, factory: str):
    command("plan", "a.pth", "--model", f"{factory}:Net", "-o", "plan.json")
    right = "fix: frostline convert a.pth plan.json b.safetensors\n"
    for given in (("plan.json", "a.pth", "b.safetensors"), ("a.pth", "b.safetensors", "plan.json")):
        refused(command("convert", *given), 2, "the arguments are CHECKPOINT PLAN OUT", right)
    done = command("convert", "a.pth", "a.pth", "b.safetensors")
    refused(done, 2, "the plan a.pth cannot be read", "-o FILE")
    assert "-o a.pth" not in done.err


def test_plan_replaces_plans_alone(command: Any, net: nn.Module, factory: str):
    job = ["plan", "a.pth", "--model", f"{factory}:Net", "-o"]
    before = Path("a.pth").read_bytes()
    refused(command(*job, "a.pth"), 2, "-o a.pth: it exists already, and is no plan", "fix: another name")
    assert Path("a.pth").read_bytes() == before
    Path("notes.json").write_text('{"mine": 1}')
    refused(command(*job, "notes.json"), 2, "is no plan")
    Path("empty").touch()
    for name in ("empty", "plan.json", "plan.json"):
        assert command(*job, name).code == 0


def test_a_trusted_pickle_from_plan_to_verify(command: Any, net: nn.Module, factory: str):
    torch.save(net, "whole.pth")
    job = ["plan", "whole.pth", "--model", f"{factory}:Net", "-o", "plan.json"]
    refused(command(*job), 3, "wants to import and call code")
    assert command(*job, "--allow-pickle").code == 0
    convert = ["convert", "whole.pth", "plan.json", "b.safetensors"]
    refused(command(*convert), 3, "wants to import and call code")
    assert command(*convert, "--allow-pickle").code == 0
    refused(command("verify", "whole.pth", "b.safetensors"), 3, "wants to import and call code")
    done = command("verify", "whole.pth", "b.safetensors", "--allow-pickle")
    assert (done.code, done.out) == (0, "holds: 11 equal, by the plan in its header\n")


def test_a_checkpoint_larger_than_memory_is_told_from_a_plan_by_its_head(tmp_path: Path):
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 36)  # a hole: it takes no space, and whoever reads it all takes 64 GiB
    assert not is_plan(path)
    path.write_text('{"schema_version": 1, "rows": []}', encoding="utf-8")
    assert is_plan(path)
