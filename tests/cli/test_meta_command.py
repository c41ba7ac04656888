"""``frostline meta`` as its users meet it: what it prints, what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from frostline.cli.meta_command import DEMO, meta
from frostline.meta import found_data
from frostline.meta.digits_classes import digits
from frostline.meta.policy import SOURCES
from frostline.meta.run import train
from frostline.meta.run_settings import MetaConfig

OMNIGLOT = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "omniglot"
FAST = [
    *("--demo", "--way", 3, "--iterations", 4, "--meta-batch", 2, "--width", 4, "--steps", 2, "--queries", 2),
    *("--eval-tasks", 4, "--validate-tasks", 2, "--validate-every", 2, "--checkpoint-every", 2, "--threads", 1),
]
SMALL = {
    **DEMO,
    "way": 3,
    "iterations": 4,
    "meta_batch": 2,
    "width": 4,
    "steps": 2,
    "queries": 2,
    "eval_tasks": 4,
    "validate_tasks": 2,
    "validate_every": 2,
    "checkpoint_every": 2,
    "threads": 1,
}


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
    assert "run folder   " not in done.out


@pytest.fixture(autouse=True, scope="module")
def _loaded_once() -> Iterator[None]:
    class_set = digits(rotations="classes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found_data, "digits", lambda **_: class_set)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = train(MetaConfig(**SMALL), tmp_path_factory.mktemp("trained") / "run").folder
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "finished"))


@pytest.fixture
def photos_of_nine(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(9):
        for index in range(4):
            path = tmp_path / "photos" / f"class{number}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


# What it prints, and leaves behind


def test_the_demo_tells_what_it_found(command: Any, tmp_path: Path):
    folder = tmp_path / "run"
    done = command("meta", *FAST, "--out", folder)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "found scikit-learn digits: 40 classes in 10 groups; classes: train 24, val 8, test 8"
    assert lines[1] == "training: 4 iterations"
    assert lines[2].startswith("  iteration 1/4  loss ")
    assert sum(line.startswith("    validation after ") for line in lines) == 2
    found = json.loads((folder / "results.json").read_text())["evaluation"]["rows"]
    for row in found:
        text = f"{100 * row['accuracy']:.1f} ± {100 * row['interval']:.1f} %"
        assert any(
            line.split()[:3] == [row["policy"], row["kind"], str(row["queries"])] and text in line for line in lines
        )
    table = json.loads((folder / "policies.json").read_text())["evaluation"]["rows"]
    assert [row["policy"] for row in table] == list(SOURCES)
    assert any(
        line.startswith("conditions: 4 tasks of 'test', 3-way 1-shot, steps at test 2, seed 0") for line in lines
    )
    assert lines[-2:] == [f"run folder   {folder}", f"report       {folder / 'report.html'}"]
    assert "\x1b" not in done.out
    page = (folder / "report.html").read_text()
    assert all(f">{policy}<" in page for policy in SOURCES)


def test_json_is_all_that_standard_output_has(command: Any, tmp_path: Path):
    folder = tmp_path / "run"
    done = command("meta", *FAST, "--json", "--out", folder)
    assert done.code == 0
    told = json.loads(done.out)
    stored = json.loads((folder / "results.json").read_text())
    assert {name: told[name] for name in stored} == stored
    assert told["policies"] == json.loads((folder / "policies.json").read_text())
    assert (told["folder"], told["report"]) == (str(folder), str(folder / "report.html"))
    assert done.err.startswith("found scikit-learn digits")


def test_the_policies_of_a_finished_run(command: Any, finished: Path):
    done = command("meta", "policies", "--run", finished, "--policies", "batch, support,batch/population", "--tasks", 3)
    assert (done.code, done.err) == (0, "")
    table = json.loads((finished / "policies.json").read_text())["evaluation"]["rows"]
    assert [row["policy"] for row in table] == ["batch", "support", "batch/population"]
    assert "measuring the population on 100 tasks of train" in done.out
    assert any(line.startswith("batch/population  inductive") for line in done.out.splitlines())
    assert "batch/population" in (finished / "report.html").read_text()
    again = command("meta", "policies", "--run", finished, "--policies", "batch", "--tasks", 3, "--json")
    told = json.loads(again.out)
    stored = json.loads((finished / "policies.json").read_text())
    assert {name: told[name] for name in stored} == stored


def test_an_image_folder(command: Any, tmp_path: Path, photos_of_nine: Path):
    options = [*("--way", 2, "--queries", 1, "--size", 16, "--iterations", 1, "--meta-batch", 1, "--width", 4)]
    done = command(
        *(
            "meta",
            "--data",
            photos_of_nine,
            *options,
            "--eval-tasks",
            2,
            "--algorithm",
            "proto",
            "--out",
            tmp_path / "run",
        )
    )
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("found image folder: 9 classes; classes: train 5, val 2, test 2\n")
    # Four images of a class: one to learn from leaves three.
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row["queries"] for row in results["evaluation"]["rows"]} == {1}
    assert "variation" not in results


def test_a_preset_says_its_settings_and_what_is_given_wins(command: Any, tmp_path: Path):
    done = command(
        *("meta", *FAST, "--preset", "higher", "--rotations", "classes", "--shot", 1, "--network", "conv2"),
        *("--json", "--out", tmp_path / "run"),
    )
    assert done.code == 0
    assert "preset higher: way 5, shot 5, queries 15, inner lr 0.1, steps 5, meta batch 32" in done.err
    assert "the first 1,200 characters as os.walk lists them" in done.err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    expected = {"way": 3, "shot": 1, "network": "conv2", "resample": "bicubic", "invert": False, "lr": 1e-3}
    assert {name: config[name] for name in expected} == expected


def test_without_an_out_folder_it_says_at_once_where_the_run_is(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    done = command("meta", *FAST)
    assert done.out.splitlines()[0] == "run folder runs/meta-1"
    assert (tmp_path / "runs" / "meta-1" / "policies.json").is_file()


def test_every_setting_is_an_option_and_says_its_default(command: Any):
    options = {parameter for parameter in meta.__annotations__ if parameter not in {"context", "return"}}
    settings = {field.name for field in fields(MetaConfig)}
    assert options - {"demo", "preset", "out", "resume", "as_json"} == settings
    text = " ".join(command("meta", "--help").out.split())
    default = MetaConfig()
    for name, noun in (
        ("way", "Classes in a task"),
        ("shot", "Labelled images of each"),
        ("queries", "Query images of each, in training"),
        ("steps", "Inner steps of training"),
        ("iterations", "Steps of the outer optimizer"),
        ("meta_batch", "Tasks in each"),
        ("width", "Channels of the network"),
        ("inner_lr", "Rate of the inner steps"),
        ("lr", "Rate of the outer optimizer"),
        ("eval_tasks", "Tasks of the evaluation"),
        ("validate_tasks", "Tasks of each"),
        ("checkpoint_every", "Iterations between checkpoints"),
        ("seed", "Of splits, weights and tasks"),
        ("algorithm", "How it learns"),
        ("on_nonfinite", "At a task that is NaN or blows up"),
        ("device", "auto, cpu, cuda, cuda:1 or mps"),
    ):
        assert f"{noun}; {getattr(default, name)} by default" in text, name


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which data?\n  fix: --data FOLDER"),
        (["--demo", "--data", "x"], "--demo has data of its own"),
        (["--data", "nowhere"], "--data nowhere: it does not exist"),
        (["--demo", "--way", "1"], "--way 1: too small"),
        (["--demo", "--way", "20"], "20-way tasks for each of training, validation and test take 15 groups"),
        (["--demo", "--queries", "500"], "1 shots and 500 queries take 501 images of a class"),
        (["--demo", "--algorithm", "mmal"], "did you mean 'maml'?"),
        (["--demo", "--policy", "suport"], "did you mean 'support'"),
        (["--demo", "--preset", "highr"], "did you mean 'higher'?"),
        (["--demo", "--lr", "nan"], "--lr nan: a rate is a positive number"),
        (["--demo", "--order", "3"], "--order 3"),
        (["--demo", "--network", "conv4"], "images of 8 x 8 are too small for a network of 4 blocks"),
        (["--demo", "--device", "nonsense"], "--device nonsense: there is no device 'nonsense'"),
        (["--demo", "--splits", "nowhere.json"], "nowhere.json cannot be read"),
        (["--resume", "nowhere"], "no run to resume: nowhere does not exist"),
        (["--resume", "nowhere", "--demo", "--preset", "higher"], "--demo, --preset was given too"),
        (["--way", "5", "policies", "--run", "x"], "--way before 'policies' is about training"),
        (["policies", "--run", "nowhere"], "no run: nowhere does not exist\n  fix: --run with"),
        (["policies", "--run", "nowhere", "--policies", "bach"], "did you mean 'batch'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_is_refused(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
):
    monkeypatch.chdir(tmp_path)
    refused(command("meta", *arguments), 2, said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--way", "five"], ["--nonsense"], ["policies"], ["polices"]])
def test_what_is_no_option_is_a_message_too(command: Any, arguments: list[str]):
    done = command("meta", *arguments)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_too_few_classes_for_three_splits_name_a_way_that_works(command: Any, tmp_path: Path, photos_of_nine: Path):
    options = ["meta", "--data", photos_of_nine, "--queries", 1, "--size", 16, "--width", 4, "--iterations", 1]
    done = command(*options, "--out", tmp_path / "run")
    refused(done, 2, "5-way tasks for each of training, validation and test take 15", "found: 9", "fix: --way 3")
    assert not (tmp_path / "run").exists()
    done = command(*options, "--way", 3, "--meta-batch", 1, "--eval-tasks", 2, "--out", tmp_path / "run")
    assert done.code == 0


def test_a_run_that_is_there_is_not_written_over(command: Any, finished: Path):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    refused(command("meta", *FAST, "--out", finished), 2, "already holds a run", f"--resume {finished}")
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_run_of_other_settings_is_not_gone_on_with(command: Any, finished: Path):
    done = command("meta", "--resume", finished, "--way", 5, "--policy", "support")
    refused(done, 2, "--way 3 there, 5 asked for", "--policy batch there, support asked for")
    done = command("meta", "--resume", finished, "--way", 3)
    assert done.code == 0
    assert done.out.startswith("resuming after iteration-4\n")


def test_a_run_of_another_command_is_told_apart(command: Any, tmp_path: Path):
    from frostline.finetune import FinetuneConfig

    (tmp_path / "config.json").write_text(json.dumps(FinetuneConfig().to_json()))
    refused(command("meta", "--resume", tmp_path), 2, "it is of no run of few-shot learning")


def test_an_unfinished_run_has_no_policies_yet(command: Any, finished: Path):
    (finished / "learner.safetensors").unlink()
    refused(command("meta", "policies", "--run", finished), 2, f"fix: frostline meta --resume {finished}")


def test_a_damaged_archive_is_named(command: Any, tmp_path: Path):
    (tmp_path / "images_background.zip").write_bytes(b"PK")
    (tmp_path / "images_evaluation.zip").write_bytes(b"PK")
    done = command("meta", "--data", tmp_path, "--out", tmp_path / "run")
    refused(done, 3, "images_background.zip is no zip archive", "(2 bytes)")
    assert not (tmp_path / "run").exists()


def test_a_damaged_learner_is_named(command: Any, finished: Path):
    learner = finished / "learner.safetensors"
    learner.write_bytes(learner.read_bytes()[:-10])
    refused(command("meta", "policies", "--run", finished), 3, "learner.safetensors cannot be read", "cut short")


def test_a_rate_that_blows_up_is_stopped_with_what_is_kept(command: Any, tmp_path: Path):
    done = command("meta", *FAST, "--lr", "1e30", "--inner-lr", "1e20", "--out", tmp_path / "run")
    refused(done, 3, "iteration ")
    assert "kept: the last good checkpoint" in done.err or "there was no checkpoint yet" in done.err


# Stopping


@pytest.mark.slow
def test_an_interrupt_leaves_a_run_that_goes_on(tmp_path: Path):
    folder = tmp_path / "run"
    options = ["--demo", "--iterations", "100000", "--width", "4", "--checkpoint-every", "1", "--threads", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "frostline", "meta", *options, "--out", folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A test run that was put into the background ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - there are no threads to fear
    ) as process:
        deadline = time.monotonic() + 120
        while not list((folder / "checkpoints").glob("*.iteration-*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err == "stopped; --resume with the run folder goes on from the last checkpoint\n"
    assert json.loads((folder / "config.json").read_text())["iterations"] == 100_000
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["iteration"] for row in rows] == list(range(1, len(rows) + 1))


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
    done = command("meta", *FAST, "--out", place / "run")
    refused(done, 3, f"{place / 'run' / 'config.json'} could not be written", "no space left on the device")
    assert [path.name for path in place.iterdir()] == ["filler"]


def test_a_disk_that_fills_up_keeps_the_last_checkpoint_and_can_go_on(
    command: Any, small_disk: Callable[[str], Path], trained: Path
):
    place = small_disk("48k")
    done = command("meta", *FAST, "--out", place / "run")
    refused(done, 3, "no space left on the device", "kept: the last good checkpoint, 0")
    assert not list((place / "run").rglob("*.partial"))
    small_disk("20m")
    done = command("meta", "--resume", place / "run")
    assert done.code == 0
    for name in ("model.safetensors", "results.json"):
        assert (place / "run" / name).read_bytes() == (trained / name).read_bytes()


# Extras


def test_without_the_extra_of_reports_the_rest_is_written(command: Any, tmp_path: Path, hide: Callable[[str], None]):
    hide("jinja2")
    done = command("meta", *FAST, "--out", tmp_path / "run")
    assert done.code == 0
    assert "report.html was not written: " in done.out
    assert "python -m pip install 'frostline[report]'" in done.out
    assert not any(line.startswith("report  ") for line in done.out.splitlines())
    assert (tmp_path / "run" / "policies.json").is_file()


def test_the_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom frostline.cli.app import app\nsys.argv = ['frostline', 'meta', '--help']\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# Real data


@pytest.mark.real_data
@pytest.mark.slow
def test_omniglot_as_it_is_published(command: Any, tmp_path: Path):
    if not OMNIGLOT.is_dir():
        pytest.skip(f"REAL DATA ABSENT: {OMNIGLOT} is not there, so few-shot learning on Omniglot goes untested")
    done = command(
        *("meta", "--data", OMNIGLOT, "--iterations", 2, "--meta-batch", 2, "--width", 8, "--steps", 1, "--queries", 5),
        *("--eval-tasks", 20, "--validate-tasks", 5, "--algorithm", "proto", "--out", tmp_path / "run"),
    )
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(
        "found Omniglot: 6,492 classes in 1,623 groups; classes: train 4,400, val 400, test 1,692\n"
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    data = results["evaluation"]["conditions"]["tasks"][0]["data"]
    assert (data["source"], data["resample"], data["inverted"]) == ("omniglot", "lanczos", True)
    # Even an untrained embedding tells drawings of five characters apart better than chance, which is 20 %.
    assert all(row["accuracy"] - row["interval"] > 0.25 for row in results["evaluation"]["rows"])
