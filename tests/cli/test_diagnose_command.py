"""``frostline diagnose`` as its users meet it: what it says, what it refuses, and exit codes."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from frostline.compat import import_torchvision
from frostline.norms.norm_report import CauseRow, Counterfactual, Interval, NormLayerRow, NormReport, RemedyRow

pytestmark = pytest.mark.filterwarnings("ignore::frostline.errors.TorchvisionWithoutOperators")
NETS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.out(self.norm(self.conv(x)).relu().mean((2, 3)))

def without_norms(num_classes=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))
"""


def paint(root: Path, classes: Sequence[str], each: int = 8, seed: int = 0, brightness: float = 1.0) -> Path:
    generator = np.random.default_rng(seed)
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            pixels = generator.integers(0, 100, (8, 8, 3)) + np.array([80, 40, 0]) * place
            Image.fromarray((brightness * pixels).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Images, and a net whose statistics fit them in ``fits.pth`` and were never updated in ``new.pth``."""
    paint(tmp_path / "images", ["dark", "light"], each=16)
    paint(tmp_path / "flat", [""], each=8)
    (tmp_path / "nets_of_diagnose_tests.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import nets_of_diagnose_tests as made  # pyright: ignore[reportMissingImports]

    import_torchvision()  # its warning is given once, and the program would print it
    torch.manual_seed(0)
    net = made.Net()
    torch.save(net.state_dict(), "new.pth")
    images = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "images").rglob("*.png"))]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    net.norm.momentum = None
    with torch.no_grad():
        net.norm(net.conv((pixels - 0.5) / 0.5))
    torch.save(net.state_dict(), "fits.pth")
    yield made
    sys.modules.pop("nets_of_diagnose_tests", None)


GRAY = ["--image-size", 8, "--mean", "0.5", "--std", "0.5", "--workers", 0, "--device", "cpu", "--batch-size", 8]
NET = "nets_of_diagnose_tests:Net"


def refused(done: Any, code: int, *said: str) -> None:
    """One message that begins with what is wrong and ends with a fix; no result, no traceback."""
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("error: ")
    assert any(line.startswith("  fix: ") for line in done.err.splitlines())
    assert "Traceback" not in done.err
    for part in said:
        assert part in done.err


# What it says


def test_statistics_that_fit_are_healthy(command: Any, nets: Any):
    done = command("diagnose", NET, "--checkpoint", "fits.pth", "--data", "images", *GRAY)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith(f"model       {NET}, fits.pth -> Net: 8/8 tensors, ")
    assert "data        images: 32 images, 2 classes" in lines
    assert "images      8 x 8 pixels, taken as they are; mean 0.5, std 0.5" in lines
    assert any(line.startswith("healthy (") for line in lines)
    assert any(line.startswith("E0  running, as they are") for line in lines)


def test_statistics_that_were_never_updated_are_a_finding(command: Any, nets: Any):
    done = command("diagnose", NET, "--checkpoint", "new.pth", "--data", "images", *GRAY)
    assert (done.code, done.err) == (1, "")
    assert "never-updated (" in done.out
    assert "recalibrate on this data" in done.out


def test_json_is_all_that_standard_output_has(command: Any, nets: Any, tmp_path: Path):
    done = command(
        *("diagnose", NET, "--checkpoint", "new.pth", "--data", "images", "--train-data", "images", *GRAY, "--json"),
        *("--html", "report.html", "--augment", "shift"),
    )
    data = json.loads(done.out)
    assert (done.code, done.err) == (1, "")
    assert (data["schema_version"], data["cause"]) == (1, "never-updated")
    assert {"causes", "layers", "remedies", "counterfactuals"} <= data.keys()
    assert [row["name"] for row in data["counterfactuals"]][:4] == ["E0", "E1", "E2", "E3"]
    assert data["inputs"]["folders"]["data"] == {"path": "images", "images": 32, "classes": 2, "left_out": 0}
    assert data["inputs"]["checkpoint"]["path"] == "new.pth"
    assert data["inputs"]["augmentation"] == "shift"
    page = (tmp_path / "report.html").read_text()
    assert "The running statistics were never updated." in page
    assert "shift, of training data" in page


def test_json_has_no_numbers_that_json_does_not_know(command: Any, nets: Any):
    state = torch.load("fits.pth")
    state["norm.running_mean"][0] = float("nan")
    state["norm.running_var"][1] = float("inf")
    torch.save(state, "nan.pth")
    done = command("diagnose", NET, "--checkpoint", "nan.pth", "--data", "images", *GRAY, "--json", "--html", "r.html")
    assert (done.code, done.err) == (1, "")

    def no_constant(name: str) -> None:
        raise AssertionError(name)

    data = json.loads(done.out, parse_constant=no_constant)
    assert data["cause"] == "non-finite"
    assert Path("r.html").read_text().startswith("<!doctype html>")


def test_a_model_without_statistics_is_healthy(command: Any, nets: Any):
    torch.save(nets.without_norms().state_dict(), "plain.pth")
    name = "nets_of_diagnose_tests:without_norms"
    done = command("diagnose", name, "--checkpoint", "plain.pth", "--data", "images", *GRAY, "--html", "r.html")
    assert (done.code, done.err) == (0, "")
    assert "has no layer that keeps running statistics" in done.out
    assert "There are no running statistics." in Path("r.html").read_text()


def test_images_without_class_folders_have_no_accuracy_and_it_says_so(command: Any, nets: Any):
    done = command("diagnose", NET, "--checkpoint", "fits.pth", "--data", "flat", *GRAY)
    assert done.err == ""
    assert "data        flat: 8 images, no class folders" in done.out
    assert "flat has no class folders, so there are no labels to measure accuracy by" in done.out
    assert "metric [95 %]" not in done.out


def test_images_that_are_enlarged_are_said_to_be(command: Any, nets: Any):
    """A factory says no size, and the classic one is 224: small images would be blown up without a word."""
    done = command("diagnose", NET, "--checkpoint", "fits.pth", "--data", "flat", "--workers", 0, "--device", "cpu")
    assert "images      224 x 224 pixels, resized, centre cropped; mean 0.485, 0.456, 0.406, std" in done.out
    assert "; enlarged from 8: --image-size 8, if the model was trained so\n" in done.out


def test_other_classes_than_the_models_are_refused_unless_no_metric_is_wanted(command: Any, nets: Any, tmp_path: Path):
    paint(tmp_path / "many", ["a", "b", "c"])
    job = ["diagnose", NET, "--checkpoint", "fits.pth", "--data", "many", *GRAY]
    refused(command(*job), 2, "the data has 3 classes, and the model tells 2 apart", "--data many: a, b, c")
    done = command(*job, "--no-metric")
    assert done.err == ""
    assert "metric [95 %]" not in done.out
    assert "has no class folders" not in done.out


def test_the_call_that_is_made(command: Any, nets: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Loaders, labels and settings reach the library as they were asked for."""
    seen: dict[str, Any] = {}

    def fake(model: nn.Module, loader: Any, metric: Any, domains: Any, **rest: Any) -> NormReport:
        seen.update(model=model, loader=loader, metric=metric, domains=domains, **rest)
        rest["progress"]("batch statistics", 1)
        return FOUND

    monkeypatch.setattr(importlib.import_module("frostline.norms.diagnose"), "diagnose", fake)
    paint(tmp_path / "night", ["light"], seed=3, brightness=0.3)
    done = command(
        *("diagnose", NET, "--checkpoint", "fits.pth", "--data", "images", "--train-data", "images", *GRAY),
        *("--domain", "day=images", "--domain", "night=night", "--steps", 40, "--html", "r.html", "--limit", 20),
        *("--augment", "shift"),
    )
    assert (done.code, done.err) == (1, "")
    assert done.out.count("mixed-domains") == 1
    assert (seen["metric"], seen["steps"], seen["batch_size"]) == ("accuracy", 40, 8)
    assert [len(batch[0]) for batch in seen["loader"]] == [8, 8, 4]
    (night,) = seen["domains"]["night"]
    assert night[1].tolist() == [1] * 8, "the only class of this domain is the second of all"
    given, augmented = (torch.cat([batch[0] for batch in seen[name]]) for name in ("loader", "train_loader"))
    assert given.shape == augmented.shape
    assert not torch.equal(given, augmented)
    assert torch.equal(seen["model"].norm.running_mean, torch.load("fits.pth")["norm.running_mean"])
    page = Path("r.html").read_text()
    for said in ("Inputs of different kinds share", "81.2%", "split by domain", "a.bn", "domain day"):
        assert said in page


FOUND = NormReport(
    causes=(
        CauseRow("mixed-domains", 0.9, "two kinds of batches", ("a.bn",)),
        CauseRow("stale", 0.2, "off everywhere", ("a.bn",)),
    ),
    layers=(NormLayerRow("a.bn", "BatchNorm2d", 2, 0.1, 7, "running", 1.5, None, 0.01, 0.1, 0.0, True),),
    remedies=(
        RemedyRow("split by domain", Interval(0.9, 0.88, 0.92), Interval(0.09, 0.05, 0.12), "apply", "norms.split"),
        RemedyRow("train on", None, None, "not measured", ""),
    ),
    counterfactuals=(Counterfactual("E0", "running, as they are", Interval(0.812, 0.79, 0.83)),),
    worst={"a.bn": [(0.0, 1.0, 0.5, 2.0), (0.1, 1.0, 0.1, 1.0)]},
    model_type="Net",
)


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere"], "--data nowhere: the folder does not exist"),
        (["--data", "fits.pth"], "--data fits.pth: the folder is a file, not a folder"),
        (["--train-data", "nowhere"], "--train-data nowhere: the folder does not exist"),
        (["--domain", "photo"], "--domain photo: not NAME=FOLDER.\n  fix: --domain photo=FOLDER"),
        (["--domain", "=images"], "--domain =images: not NAME=FOLDER"),
        (["--domain", "a="], "--domain a=: not NAME=FOLDER"),
        (["--domain", "a=images"], "--domain a=images: a single domain"),
        (["--domain", "a=images", "--domain", "a=flat"], "--domain a was given twice: images and flat"),
        (["--domain", "a=images", "--domain", "b=nowhere"], "--domain b=nowhere: the folder does not exist"),
        (["--domain", "a=images", "--domain", "b=flat"], "--domain b=flat: its images are in no class folders"),
        (["--device", "gpu"], "--device gpu: there is no device 'gpu'"),
        (["--mean", "a,b"], "--mean a,b: not one or three numbers"),
        (["--std", "0"], "--std 0: not one or three positive numbers"),
        (["--augment", "flip"], "--augment flip: unknown.\n  fix: one of auto, crop, shift, none"),
        (["--html", "report.txt"], "--html report.txt: no name of an HTML file.\n  fix: --html report.html"),
        (["--html", "nowhere/r.html"], "--html nowhere/r.html: the folder nowhere does not exist"),
        (["--image-size", 2], "the model cannot run on a batch of images of shape (2, 3, 2, 2)"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth does not exist"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(command: Any, nets: Any, arguments: list[Any], said: str):
    refused(command("diagnose", NET, "--checkpoint", "fits.pth", "--data", "images", *GRAY, *arguments), 2, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["diagnose", "a:b"], "missing option '--data'"),
        (["diagnose", "a:b", "--data", "x", "--batch-size", 1], "invalid value for '--batch-size'"),
        (["diagnose", "a:b", "--data", "x", "--limit", "few"], "invalid value for '--limit'"),
        (["diagnose", "a:b", "--data", "x", "--nonsense"], "has no option --nonsense"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_wrong_usage_is_code_2(command: Any, arguments: list[Any], said: str):
    done = command(*arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_an_empty_folder_and_one_with_train_and_val(command: Any, nets: Any, tmp_path: Path):
    job = ["diagnose", NET, "--checkpoint", "fits.pth", *GRAY, "--data"]
    (tmp_path / "empty").mkdir()
    refused(command(*job, "empty"), 2, "--data empty: no images in it")
    paint(tmp_path / "both" / "train", ["dark", "light"])
    paint(tmp_path / "both" / "val", ["dark", "light"])
    refused(command(*job, "both"), 2, "train, val hold folders of images themselves", "fix: --data both/val")


def test_a_corrupt_image_is_named_or_left_out(command: Any, nets: Any):
    Path("images/dark/3.png").write_bytes(b"")
    job = ["diagnose", NET, "--checkpoint", "fits.pth", "--data", "images", *GRAY]
    refused(command(*job), 3, "1 of 32 images", "dark/3.png: empty file", "--skip-bad-images")
    done = command(*job, "--skip-bad-images")
    assert done.code in (0, 1)
    assert "31 images, 2 classes, 1 that cannot be read left out" in done.out


class Creates:
    """Unpickled carelessly, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.open, ("evil", os.O_CREAT)


def test_checkpoints_that_cannot_be_used(command: Any, nets: Any):
    torch.save(nn.Conv2d(3, 4, 7).state_dict(), "other.pth")
    torch.save({"out.weight": torch.zeros(2, 9)}, "part.pth")
    Path("plain.pkl").write_bytes(pickle.dumps({"out.weight": Creates()}))
    Path("cut.pth").write_bytes(Path("fits.pth").read_bytes()[:-200])
    job = ["diagnose", NET, "--data", "images", *GRAY, "--checkpoint"]
    refused(command(*job, "other.pth"), 2, "does not fit", "one of another kind of model?")
    refused(command(*job, "part.pth"), 2, "does not fit", "not in the checkpoint:")
    refused(command(*job, "cut.pth"), 3, "cut.pth is cut short or damaged")
    refused(command(*job, "plain.pkl"), 3, "wants to import and call code; nothing of it was run")
    assert not Path("evil").exists()


def test_random_weights_are_not_diagnosed(command: Any, nets: Any):
    refused(command("diagnose", "timm/test_resnet", "--data", "images", *GRAY), 2, "random weights", "--checkpoint")


def test_a_missing_extra_is_said_before_anything_is_measured(command: Any, nets: Any, hide: Any):
    hide("jinja2")
    done = command("diagnose", NET, "--checkpoint", "nowhere.pth", "--data", "images", *GRAY, "--html", "r.html")
    refused(done, 2, "--html needs the package 'jinja2'", "python -m pip install 'frostline[report]'")
    assert not Path("r.html").exists()


def test_stopping_leaves_with_130(command: Any, nets: Any, monkeypatch: pytest.MonkeyPatch):
    def stopped(*_: Any, **__: Any) -> NormReport:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("frostline.norms.diagnose"), "diagnose", stopped)
    done = command("diagnose", NET, "--checkpoint", "fits.pth", "--data", "images", *GRAY)
    assert (done.code, done.out, done.err) == (130, "", "stopped; nothing was written\n")
