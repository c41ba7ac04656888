"""``frostline recalibrate``: a checkpoint is written only where it does no harm, and never over another."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from frostline.checkpoint import open_checkpoint
from frostline.compat import import_torchvision

pytestmark = pytest.mark.filterwarnings("ignore::frostline.errors.TorchvisionWithoutOperators")
NETS = """
import torch
from torch import nn

class Net(nn.Module):
    '''Says "bright" of what is brighter than the running mean.'''

    def __init__(self, num_classes=2):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.out = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.out(self.norm(x).mean((2, 3)))

def without_norms(num_classes=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))
"""
NET = "nets_of_recalibrate_tests:Net"
GRAY = ["--image-size", 8, "--mean", "0.5", "--std", "0.5", "--workers", 0, "--device", "cpu", "--augment", "none"]


def paint(root: Path, levels: dict[str, int], each: int = 16, seed: int = 0) -> None:
    generator = np.random.default_rng(seed)
    for name, level in levels.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            pixels = generator.integers(level, level + 60, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``lost.pth`` has the right weights and new statistics; ``right.pth`` has the right statistics too."""
    import_torchvision()  # its warning is given once, and the program would print it
    (tmp_path / "nets_of_recalibrate_tests.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import nets_of_recalibrate_tests as made  # pyright: ignore[reportMissingImports]

    paint(Path("train"), {"bright": 80, "dark": 0})
    paint(Path("val"), {"bright": 80, "dark": 0}, seed=1)
    paint(Path("glare"), {"bright": 190, "dark": 150})
    net = made.Net()
    with torch.no_grad():
        net.out.weight.copy_(torch.tensor([[1.0] * 3, [-1.0] * 3]))
        net.out.bias.zero_()
    torch.save(net.state_dict(), "lost.pth")
    net.norm.running_mean.fill_((70 / 255 - 0.5) / 0.5)
    net.norm.running_var.fill_(0.1)
    torch.save(net.state_dict(), "right.pth")
    yield made
    sys.modules.pop("nets_of_recalibrate_tests", None)


def job(checkpoint: str = "lost.pth", data: str = "train", *more: Any) -> list[Any]:
    return ["recalibrate", NET, "--checkpoint", checkpoint, "--data", data, *GRAY, *more]


def refused(done: Any, code: int, *said: str) -> None:
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("error: ")
    assert any(line.startswith("  fix: ") for line in done.err.splitlines())
    for part in said:
        assert part in done.err
    assert not list(Path.cwd().glob("*.safetensors"))


# What it writes


def test_what_helps_is_written_and_is_the_statistics_of_the_data(command: Any, nets: Any):
    done = command(*job(), "--held-out", "val", "--out", "new.safetensors", "--html", "r.html")
    assert (done.code, done.err) == (0, "")
    assert "kept: the metric on held-out data did not get worse: 0.5 " in done.out
    assert done.out.endswith("checkpoint  new.safetensors\nreport      r.html\n")
    written, old = open_checkpoint("new.safetensors").read_all(), torch.load("lost.pth")
    assert written.keys() == old.keys()
    for name in ("norm.weight", "norm.bias", "out.weight", "out.bias"):
        assert torch.equal(written[name], old[name])
    pixels = np.stack([np.asarray(Image.open(path)) for path in Path("train").rglob("*.png")]).astype(np.float64)
    wanted = (pixels / 255 - 0.5) / 0.5
    assert np.abs(written["norm.running_mean"].double().numpy() - wanted.mean((0, 1, 2))).max() < 1e-6
    assert np.abs(written["norm.running_var"].double().numpy() - wanted.var((0, 1, 2), ddof=1)).max() < 1e-6
    again = command("diagnose", NET, "--checkpoint", "new.safetensors", "--data", "val", *GRAY)
    assert again.code == 0
    assert "The new statistics were kept." in Path("r.html").read_text()


def test_what_does_harm_is_not_written(command: Any, nets: Any):
    done = command(*job("right.pth", "glare"), "--held-out", "val", "--out", "new.safetensors", "--html", "r.html")
    assert (done.code, done.err) == (1, "")
    assert "rolled back: the metric on held-out data got worse: 1 " in done.out
    assert done.out.endswith("nothing was written\nreport      r.html\n")
    assert not Path("new.safetensors").exists()
    assert "The new statistics were not kept." in Path("r.html").read_text()
    harmful = command(*job("right.pth", "glare"), "--unchecked", "--out", "new.safetensors")
    assert harmful.code == 0, "the twin: unchecked, it is"
    assert "nothing has checked whether the model is better" in harmful.out


def test_a_tolerance_is_taken(command: Any, nets: Any):
    done = command(*job("right.pth", "glare"), "--held-out", "val", "--out", "n.safetensors", "--tolerance", 1)
    assert done.code == 0
    assert Path("n.safetensors").exists()


@pytest.mark.parametrize("method", ["all-at-once", "eval-consistent"])
def test_json_is_all_that_standard_output_has(command: Any, nets: Any, method: str):
    done = command(*job(), "--held-out", "val", "--out", "new.safetensors", "--method", method, "--json")
    data = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert (data["schema_version"], data["accepted"], data["checked"]) == (1, True, True)
    assert (data["method"], data["out"]) == (method, "new.safetensors")
    assert data["after"]["value"] == 1.0
    assert [row["path"] for row in data["layers"]] == ["norm"]
    assert data["inputs"]["folders"]["held-out data"]["images"] == 32
    done = command(*job("right.pth", "glare"), "--held-out", "val", "--out", "other.safetensors", "--json")
    assert (done.code, json.loads(done.out)["out"]) == (1, None)


def test_training_images_are_augmented_and_held_out_ones_are_not(
    command: Any, nets: Any, monkeypatch: pytest.MonkeyPatch
):
    room = importlib.import_module("frostline.norms.recalibrate")
    seen: dict[str, Any] = {}
    real = room.recalibrate

    def spy(model: nn.Module, loader: Any, **rest: Any) -> Any:
        seen.update(loader=torch.cat([x for x, _ in loader]), held=torch.cat([x for x, _ in rest["held_out"]]))
        return real(model, loader, **rest)

    monkeypatch.setattr(room, "recalibrate", spy)
    done = command(*job(), "--augment", "shift", "--held-out", "val", "--out", "n.safetensors")
    assert "augmentation      shift, of calibration data\n" in done.out
    assert (seen["loader"] == -1).all(1).any(), "shifted images have a black border"
    assert not (seen["held"] == -1).all(1).any()


def test_a_model_without_statistics_says_so(command: Any, nets: Any):
    torch.save(nets.without_norms().state_dict(), "plain.pth")
    name = "nets_of_recalibrate_tests:without_norms"
    done = command(
        *("recalibrate", name, "--checkpoint", "plain.pth", "--data", "train", "--held-out", "val", *GRAY),
        *("--out", "new.safetensors", "--html", "r.html"),
    )
    assert (done.code, done.err) == (0, "")
    assert "keeps running statistics: there is nothing to recalibrate" in done.out
    assert done.out.endswith("nothing was written\nreport      r.html\n")
    assert "There was nothing to recalibrate." in Path("r.html").read_text()
    assert not Path("new.safetensors").exists()


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing would check whether new.safetensors is better"),
        (["--unchecked", "--held-out", "val"], "--unchecked and --held-out val"),
        (["--unchecked", "--method", "twice"], "--method twice: unknown.\n  fix: one of all-at-once, eval-consistent"),
        (["--held-out", "train"], "--held-out train: those are the images of --data"),
        (["--held-out", "val", "--allow-imbalance"], "--allow-imbalance without --unchecked"),
        (["--held-out", "nowhere"], "--held-out nowhere: the folder does not exist"),
        (["--held-out", "val/dark"], "--held-out val/dark: its images are in no class folders"),
        (["--unchecked", "--html", "a.pdf"], "--html a.pdf: no name of an HTML file"),
    ],
    ids=lambda value: " ".join(value) or "unchecked" if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(command: Any, nets: Any, arguments: Sequence[str], said: str):
    refused(command(*job(), "--out", "new.safetensors", *arguments), 2, said)


def test_places_that_are_not_written_to(command: Any, nets: Any):
    refused(command(*job(), "--unchecked", "--out", "new.pth"), 2, "--out new.pth: a safetensors", "new.safetensors")
    refused(command(*job(), "--unchecked", "--out", "no/a.safetensors"), 2, "the folder no does not exist")
    done = command("recalibrate", NET, "--data", "train")
    assert done.code == 2
    assert "missing option '--out'" in done.err


def test_a_file_in_the_way_is_replaced_only_by_force(command: Any, nets: Any):
    there = Path("there.safetensors")
    there.write_bytes(b"mine")
    before = command(*job(), "--held-out", "val", "--out", there)
    assert (before.code, before.out) == (2, "")
    assert "--out there.safetensors: it exists already.\n  fix: another name, or --force" in before.err
    assert there.read_bytes() == b"mine"
    harmful = command(*job("right.pth", "glare"), "--held-out", "val", "--out", there, "--force")
    assert harmful.code == 1
    assert there.read_bytes() == b"mine", "what is not accepted replaces nothing"
    assert command(*job(), "--held-out", "val", "--out", there, "--force").code == 0
    assert "norm.running_mean" in open_checkpoint(there).tensors
    own = command(*job(str(there)), "--held-out", "val", "--out", there, "--force")
    assert own.code == 2
    assert "that is the old checkpoint" in own.err


def test_data_that_lacks_classes_is_not_taken_unchecked(command: Any, nets: Any, tmp_path: Path):
    paint(Path("half"), {"dark": 0}, each=60)
    paint(Path("half"), {"bright": 80}, each=1)
    few = [*job(data="half"), "--limit", 20, "--seed", 1, "--unchecked", "--out", "new.safetensors"]
    refused(command(*few), 2, "N309 error: 1 of 2 classes are missing")
    done = command(*few, "--allow-imbalance")
    assert (done.code, done.err) == (0, "")
    assert Path("new.safetensors").exists()
