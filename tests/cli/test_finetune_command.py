"""``frostline finetune`` as its users meet it: what it prints, what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

PROGRAM = [sys.executable, "-m", "frostline", "finetune"]
FAST = ["--epochs", "1", "--batch-size", "512", "--no-naive"]


def refused(done: Any, code: int, *said: str) -> None:
    """One message that begins with what is wrong, and nothing else: no result, no traceback."""
    assert done.code == code, done.err
    lines = [line for line in done.err.splitlines() if not line.startswith("warning: ")]
    assert lines[0].startswith("error: ")
    assert all(line.startswith("  ") for line in lines[1:])
    assert any(line.startswith("  fix: ") for line in lines)
    assert "Traceback" not in done.err
    for part in said:
        assert part in done.err
    assert not any(line.startswith("run folder") for line in done.out.splitlines())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, for what is done to finished ones."""
    from frostline.finetune import FinetuneConfig, run

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = run(FinetuneConfig(epochs=1, batch_size=512, naive=False), tmp_path_factory.mktemp("finished") / "run")
    torch.set_num_threads(threads)
    return result.folder


# What it prints


def test_the_embedded_job_tells_what_it_found(command: Any, tmp_path: Path):
    folder = tmp_path / "run"
    done = command("finetune", "--epochs", "2", "--batch-size", "128", "--out", folder)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    certificate = json.loads((folder / "certificate.json").read_text())
    digit, spoilt = certificate["probe"]["digit"], certificate["naive"]["probe"]["digit"]
    before = f"{digit['metric_before']:.2%}"
    assert before == f"{digit['metric_after']:.2%}"
    assert lines[0] == "training digit: 2 epochs"
    assert lines[1:3] == ["  trains: trunk, heads.digit", "  held: heads.parity"]
    assert lines[3].startswith("  epoch 1/2  loss ")
    for line in (
        f"digit: accuracy {before} before, {before} after; logits equal to the bit",
        f"held: {len(certificate['held'])} of {len(certificate['held'])} state entries equal to the bit",
        "moved: 9 of 20 tensors that should have stayed (3 norm.mean, 3 norm.var, 3 norm.count)",
        f"run folder   {folder}",
        f"report       {folder / 'report.html'}",
        f"load it      safetensors.torch.load_file('{folder / 'model.safetensors'}')",
    ):
        assert line in lines
    of_naive = f"digit: accuracy {before} before, {spoilt['metric_after']:.2%} after; logits changed by up to "
    (line,) = [line for line in lines if line.startswith(of_naive)]
    assert line.endswith(f", {spoilt['predictions_changed']} predictions changed")
    assert "  trunk.bn1.num_batches_tracked  largest change 22" in lines
    (line,) = [line for line in lines if line.startswith("time ")]
    assert re.fullmatch(r"time         loading \S+ %, .*head \S+ %, saving \S+ %, preparing .* of \S+ s", line)
    assert "\x1b" not in done.out


def test_one_is_not_plural(command: Any, tmp_path: Path):
    done = command("finetune", *FAST, "--out", tmp_path / "run")
    assert "training digit: 1 epoch\n" in done.out
    assert "after 1 epoch\n" in done.out


def test_json_is_all_that_standard_output_has(command: Any, tmp_path: Path):
    done = command("finetune", *FAST, "--json", "--out", tmp_path / "run")
    assert done.code == 0
    result = json.loads(done.out)
    assert result["schema_version"] == 1
    assert result["isolated"] is True
    assert result["certificate"] == json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert result["report"] == str(tmp_path / "run" / "report.html")
    assert done.err.startswith("training digit: 1 epoch\n")


def test_without_an_out_folder_it_says_at_once_where_the_run_is(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        done = command("finetune", *FAST)
        assert done.out.splitlines()[0] == f"run folder runs/finetune-{number}"
        assert (tmp_path / "runs" / f"finetune-{number}" / "certificate.json").is_file()


def test_an_image_folder_with_a_factory(command: Any, tmp_path: Path, photos: Path, factory: str):
    done = command(
        *("finetune", "--data", photos, "--model", f"{factory}:Net", "--epochs", 1, "--workers", 0),
        *("--freeze", "stem", "--freeze", "norm", "--out", tmp_path / "run", "--naive"),
    )
    assert (done.code, done.err) == (0, "")
    assert "original: logits changed by up to " in done.out
    assert "moved: 3 of 9 tensors that should have stayed (1 norm.mean, 1 norm.var, 1 norm.count)" in done.out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["freeze"] == ["stem", "norm"]
    assert config["naive"] is True


def test_warnings_are_lines_of_their_own(command: Any, tmp_path: Path, photos: Path):
    done = command(
        *("finetune", "--data", photos, "--model", "timm/resnet10t", "--epochs", 1, "--workers", 0),
        *("--out", tmp_path / "run"),
    )
    assert done.code == 0
    assert all(line.startswith("warning: ") for line in done.err.splitlines())
    assert "warning: the trunk has random weights: neither --init nor --pretrained was given" in done.err
    assert "the trunk has random weights" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["error", "ignore"])
def test_what_the_environment_says_of_warnings_does_not_matter(tmp_path: Path, photos: Path, setting: str):
    done = subprocess.run(
        [
            *PROGRAM,
            "--data",
            photos,
            "--model",
            "timm/resnet10t",
            "--head",
            "nope",
        ],
        env={**os.environ, "PYTHONWARNINGS": setting},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    *warned, first, _, _ = done.stderr.splitlines()
    assert done.returncode == 2
    assert first == "error: timm/resnet10t has no module 'nope'"
    assert all(line.startswith("warning: torchvision's compiled operators do not load") for line in warned)


@pytest.mark.slow
def test_an_interrupt_says_how_to_go_on(tmp_path: Path):
    folder = tmp_path / "run"
    with subprocess.Popen(
        [*PROGRAM, "--epochs", "5000", "--out", folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A test run that was put into the background ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - there are no threads to fear
    ) as process:
        deadline = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err == f"stopped; from the last checkpoint it goes on with: frostline finetune --resume {folder}\n"


# Settings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epochs", "0"], "--epochs 0: too small"),
        (["--batch-size", "-4"], "--batch-size -4: too small"),
        (["--lr", "-1"], "--lr -1.0: a learning rate is a positive number"),
        (["--lr", "nan"], "--lr nan: a learning rate is a positive number"),
        (["--seed", "-1"], "--seed -1: too small"),
        (["--seed", "9" * 30], "too large"),
        (["--device", "nonsense"], "--device nonsense: there is no device 'nonsense'"),
        (["--model", "timm/resnet18"], "--model: without --data"),
        (["--data", "photos"], "--data photos: which model?"),
        (["--task", "kind=kind.csv"], "--task kind=kind.csv: which model?"),
        (["--data", "photos", "--model", "timm/resnet18"], "the data folder photos does not exist"),
        (["--strategy", "head", "--freeze", "conv1"], "--strategy head with --freeze conv1: the one trains"),
        (["--freeze", "conv9"], "pattern 'conv9' matched nothing"),
        (["--resume", "nowhere"], "no run to resume: nowhere does not exist"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_settings_that_are_refused(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
):
    monkeypatch.chdir(tmp_path)
    refused(command("finetune", *arguments), 2, said)
    assert list(tmp_path.iterdir()) == []


def test_a_selector_that_matches_nothing_lists_the_nearest(command: Any, tmp_path: Path):
    done = command("finetune", "--freeze", "conv9", "--out", tmp_path / "run")
    refused(done, 2, "nearest names: conv3, conv2, conv1")
    assert not (tmp_path / "run").exists()


# Models


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("timm/resnet81", ["no model 'resnet81' in timm", "nearest names: resnet18", "fix: timm/resnet18"]),
        ("torchvision/resnet81", ["no model 'resnet81' in torchvision", "fix: torchvision/resnet18"]),
        ("resnet18", ["no model 'resnet18': it has no prefix"]),
        ("nowhere_at_all:Net", ["no module 'nowhere_at_all'"]),
    ],
)
def test_an_unknown_model_is_refused_with_the_nearest(
    command: Any, tmp_path: Path, photos: Path, model: str, said: list[str]
):
    refused(command("finetune", "--data", photos, "--model", model, "--out", tmp_path / "run"), 2, *said)
    assert not (tmp_path / "run").exists()


def test_a_head_that_does_not_fit_is_refused(command: Any, tmp_path: Path, photos: Path, factory: str):
    job = ["finetune", "--data", photos, "--model", f"{factory}:Net", "--out", tmp_path / "run"]
    refused(command(*job, "--head", "gate"), 2, "fix: --head NAME")
    refused(command(*job, "--head", "stem"), 2, "must be a Linear layer", "found: a Conv2d", "Linear layers out, gate")
    refused(command(*job, "--head", "fc"), 2, "has no module 'fc'")
    torch.save({"out.weight": torch.zeros(2, 9)}, tmp_path / "wide.pth")
    done = command(*job, "--init", tmp_path / "wide.pth")
    refused(done, 2, "expected: out.weight with 4 columns", "found: shape (2, 9)")
    assert not (tmp_path / "run").exists()


# Images


def test_folders_that_cannot_be_used_are_refused(command: Any, tmp_path: Path, photos: Path, factory: str):
    job = ["finetune", "--model", f"{factory}:Net", "--out", tmp_path / "run", "--data"]
    (tmp_path / "empty").mkdir()
    refused(command(*job, tmp_path / "empty"), 2, f"no images in class folders in {tmp_path / 'empty'}")
    for side in ("train", "val"):
        shutil.rmtree(photos / side / "light")
    refused(command(*job, photos), 2, f"{photos} has one class, 'dark'")
    refused(command(*job, photos / "train" / "dark" / "0.png"), 2, "is a file, not a data folder")
    assert not (tmp_path / "run").exists()


def test_bad_images_are_named_or_skipped_and_counted(command: Any, tmp_path: Path, photos: Path, factory: str):
    (photos / "train" / "dark" / "1.png").write_bytes(b"")
    whole = photos / "train" / "light" / "2.png"
    whole.write_bytes(whole.read_bytes()[:-60])
    job = ["finetune", "--data", photos, "--model", f"{factory}:Net", "--out", tmp_path / "run", "--workers", 0]
    done = command(*job)
    refused(done, 3, "2 of 12 images", "train/dark/1.png: empty file", "train/light/2.png: ", "--skip-bad-images")
    assert not (tmp_path / "run").exists()
    done = command(*job, "--skip-bad-images", "--epochs", 1)
    assert done.code == 0
    assert "2 images could not be read and were left out" in (tmp_path / "run" / "report.html").read_text()
    assert done.out.startswith("2 images could not be read and were left out, train/dark/1.png for example\n")


def test_a_data_folder_named_as_a_module_attribute(command: Any, tmp_path: Path, photos: Path, factory: str):
    """``train`` is what an error message tells people to pass."""
    done = command(
        *("finetune", "--data", photos / "train", "--model", f"{factory}:Net", "--epochs", 1, "--workers", 0),
        *("--out", tmp_path / "run"),
    )
    assert done.code == 0
    assert "training train_new: 1 epoch" in done.out


# Training


def test_a_loss_that_is_no_number_stops_the_run(command: Any, tmp_path: Path):
    done = command("finetune", "--lr", "1e30", "--epochs", 2, "--out", tmp_path / "run")
    what = "the loss became nan in phase 'digit', epoch 1, step 2"
    refused(done, 3, what, "there was no checkpoint yet", "fix: a smaller learning rate than --lr 1e+30")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    # A single step an epoch: the loss is finite, the weights behind it are not, and no checkpoint is made of them.
    done = command("finetune", "--lr", "1e30", "--batch-size", 2000, "--out", tmp_path / "other")
    refused(done, 3, "logits became nan or infinite on the validation data", "there was no checkpoint yet")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["config.json"]


# Checkpoints


class Creates:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.open, (str(self.path), os.O_CREAT)


def test_checkpoints_that_cannot_be_used_are_refused_and_nothing_of_them_runs(
    command: Any, tmp_path: Path, photos: Path, factory: str
):
    evil = tmp_path / "evil"
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"out.weight": Creates(evil)}))
    torch.save({"out.weight": Creates(evil)}, tmp_path / "zip.pth")
    torch.save({"out.weight": Creates(evil)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(nn.Conv2d(3, 40, 7).state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-500])
    (tmp_path / "nothing.safetensors").write_bytes(b"")

    job = ["finetune", "--data", photos, "--model", f"{factory}:Net", "--out", tmp_path / "run", "--init"]
    for name in ("plain.pkl", "zip.pth", "legacy.pth"):
        refused(command(*job, tmp_path / name), 3, name, "wants to import and call code; nothing of it was run", "open")
    refused(command(*job, tmp_path / "cut.pth"), 3, "cut.pth is cut short or damaged")
    refused(command(*job, tmp_path / "nothing.safetensors"), 3, "is empty (0 bytes)")
    refused(command(*job, tmp_path / "nowhere.pth"), 2, "nowhere.pth does not exist")
    refused(command(*job, tmp_path / "whole.pth"), 2, "whole.pth does not fit Net; nothing was changed")
    assert not evil.exists()
    assert not (tmp_path / "run").exists()
    with (tmp_path / "plain.pkl").open("rb") as file:  # the twin: it would have
        os.close(pickle.load(file)["out.weight"])
    assert evil.exists()


# The run folder


def test_a_folder_in_the_way_is_refused_and_left_alone(command: Any, tmp_path: Path, finished: Path):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    refused(command("finetune", "--out", finished), 2, "already holds a run", f"--resume {finished}")
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    (tmp_path / "notes.txt").write_text("mine")
    refused(command("finetune", "--out", tmp_path), 2, "already holds other files", "found: notes.txt")
    refused(command("finetune", "--out", tmp_path / "notes.txt"), 2, "is a file")


def test_resume_takes_no_other_settings_but_a_device(command: Any, tmp_path: Path, finished: Path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    done = command("finetune", "--resume", folder, "--lr", "0.1", "--seed", 0, "--out", tmp_path / "other")
    refused(done, 2, "--resume takes its settings from the run's config.json, but --lr, --seed, --out was given too")
    refused(done, 2, f"--init {folder}, with the --data and --model of that run")
    done = command("finetune", "--resume", folder, "--device", "cpu", "--json")
    assert done.code == 0
    assert json.loads(done.out)["certificate"] == json.loads((finished / "certificate.json").read_text())
    assert done.err.splitlines()[0] == "resuming after parity-epoch-1"


def test_resume_passes_over_damage_and_says_so(command: Any, tmp_path: Path, finished: Path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    done = command("finetune", "--resume", folder)
    assert done.code == 0
    assert done.out.startswith(f"passing over a damaged checkpoint, {newest.name}: cut short or damaged")
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"x")
    refused(command("finetune", "--resume", folder), 3, "can be read", "fix: restore one of them")
    (folder / "config.json").write_text("[]")
    refused(command("finetune", "--resume", folder), 2, "config.json holds a list, no settings")


# No space left


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of a given size in memory; again with another size, it is resized."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(size: str) -> Path:
        again = "remount," if place.is_mount() else ""
        mount = ["mount", "-t", "tmpfs", "-o", f"{again}size={size}", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("MOUNTING IS NOT PERMITTED HERE, so a disk that is really full goes untested")
        return place

    yield sized
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full_from_the_start(command: Any, small_disk: Callable[[str], Path]):
    place = small_disk("64k")
    (place / "filler").write_bytes(b"x" * 65536)
    done = command("finetune", *FAST, "--out", place / "run")
    refused(done, 3, f"{place / 'run' / 'config.json'} could not be written", "no space left on the device")
    assert [path.name for path in place.iterdir()] == ["filler"]


def test_a_disk_that_fills_up_keeps_the_last_checkpoint_and_can_go_on(
    command: Any, small_disk: Callable[[str], Path], finished: Path
):
    place = small_disk("360k")  # the first checkpoint has about 320 kB, with the optimizer's state
    done = command("finetune", *FAST, "--out", place / "run")
    refused(done, 3, "no space left on the device", "kept: the last good checkpoint, 000001.digit-epoch-1.safetensors")
    assert [path.name for path in (place / "run" / "checkpoints").iterdir()] == ["000001.digit-epoch-1.safetensors"]
    assert not list((place / "run").rglob("*.partial"))
    small_disk("20m")
    done = command("finetune", "--resume", place / "run")
    assert done.code == 0
    one, other = (json.loads((folder / "certificate.json").read_text()) for folder in (place / "run", finished))
    assert one == other


# Extras


@pytest.mark.parametrize(
    ("package", "extra", "purpose"),
    [("accelerate", "train", "Training"), ("sklearn", "train", "The embedded digits")],
)
def test_an_extra_that_the_digits_need(
    command: Any, tmp_path: Path, hide: Callable[[str], None], package: str, extra: str, purpose: str
):
    hide(package)
    done = command("finetune", "--out", tmp_path / "run")
    refused(done, 2, f"{purpose} needs the package {package!r}", f"python -m pip install 'frostline[{extra}]'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("package", ["timm", "torchvision", "PIL"])
def test_an_extra_that_photographs_need(
    command: Any, tmp_path: Path, photos: Path, hide: Callable[[str], None], package: str
):
    hide(package)
    done = command("finetune", "--data", photos, "--model", "timm/resnet18", "--out", tmp_path / "run")
    refused(done, 2, f"needs the package {package!r}", "python -m pip install 'frostline[train]'")
    assert not (tmp_path / "run").exists()


def test_without_the_extra_of_reports_the_rest_is_written(command: Any, tmp_path: Path, hide: Callable[[str], None]):
    hide("jinja2")
    done = command("finetune", *FAST, "--out", tmp_path / "run")
    assert done.code == 0
    assert "report.html was not written: " in done.out
    assert "python -m pip install 'frostline[report]'" in done.out
    assert not any(line.startswith("report  ") for line in done.out.splitlines())
    assert (tmp_path / "run" / "certificate.json").is_file()
    assert not (tmp_path / "run" / "report.html").exists()
