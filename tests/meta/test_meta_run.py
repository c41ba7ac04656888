"""A run leaves behind what it promises, and one that is killed and resumed ends as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from frostline import durable
from frostline.cli.meta_command import DEMO
from frostline.errors import CorruptCheckpoint, DataError, InnerLoopDiverged, RunFolderError, TrainingDiverged
from frostline.meta import found_data
from frostline.meta import run as run_module
from frostline.meta.digits_classes import digits
from frostline.meta.learner import Learner
from frostline.meta.run import HOPELESS, resume, train
from frostline.meta.run_learner import build
from frostline.meta.run_progress import IterationRow, Silent, ValidationRow
from frostline.meta.run_settings import MetaConfig
from frostline.meta.splits import Splits
from frostline.meta.tasks import Tasks

SMALL = MetaConfig(
    way=3,
    queries=2,
    steps=2,
    iterations=7,
    meta_batch=2,
    width=4,
    eval_tasks=6,
    validate_every=3,
    validate_tasks=3,
    checkpoint_every=2,
    threads=1,
)


class Recorder(Silent):
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.begun: tuple[int, int] | None = None
        self.rows: list[IterationRow | ValidationRow] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def begin(self, iterations: int, done: int) -> None:
        self.begun = (iterations, done)

    def iteration(self, row: IterationRow) -> None:
        self.rows.append(row)

    def validated(self, row: ValidationRow) -> None:
        self.rows.append(row)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def _loaded_once() -> Iterator[None]:
    """The digits are the same each time, and reading them takes longer than these runs."""
    class_set = digits(rotations="classes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found_data, "digits", lambda **_: class_set)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, not interrupted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = train(SMALL, tmp_path_factory.mktemp("whole") / "run").folder
    torch.set_num_threads(threads)
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows_of(folder)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(folder: Path, reference: Path) -> None:
    assert without_seconds(folder) == without_seconds(reference)
    for name in ("model.safetensors", "learner.safetensors", "results.json", "splits.json", "config.json"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    newest, expected = (sorted((place / "checkpoints").iterdir())[-1] for place in (folder, reference))
    one, other = (safetensors.torch.load_file(path) for path in (newest, expected))
    assert one.keys() == other.keys()  # the optimizer's and the kept statistics' too
    assert all(one[name].numpy().tobytes() == other[name].numpy().tobytes() for name in one)
    assert not [path for path in folder.rglob("*") if path.name.endswith(".partial")]


# What it leaves behind


def test_a_row_for_each_iteration_and_validation(whole: Path):
    rows = rows_of(whole)
    assert [(row["iteration"], row["mode"]) for row in rows] == [
        (1, "batch"),
        (2, "batch"),
        (3, "batch"),
        (3, "validate"),
        (4, "batch"),
        (5, "batch"),
        (6, "batch"),
        (6, "validate"),
        (7, "batch"),
    ]
    for row in rows:
        assert 0 <= row["accuracy"] <= 1
        assert row["seconds"] > 0
        assert row["skipped"] == 0
        assert ("loss" in row) == (row["mode"] != "validate")


def test_results_have_both_kinds_for_every_number_of_queries_and_what_they_depend_on(whole: Path):
    results = json.loads((whole / "results.json").read_text())
    found = [(row["policy"], row["kind"], row["queries"]) for row in results["evaluation"]["rows"]]
    kinds = [("batch", "transductive"), ("support", "inductive")]
    assert found == [(*kind, size) for kind in kinds for size in (1, 2, 5, 15)]
    conditions = results["evaluation"]["conditions"]
    assert (conditions["split"], conditions["count"], conditions["steps_at_test"]) == ("test", 6, 2)
    assert conditions["tasks"][0]["data"]["rotations"] == "classes"
    assert [layer["layer"] for layer in results["variation"]["layers"]] == ["block1.norm", "block2.norm"]
    assert (results["data"], results["network"]) == ("scikit-learn digits: 40 classes in 10 groups", "conv2")


def test_the_loop_is_the_plain_one(whole: Path):
    """The same weights by hand: tasks in their order, one backward and one step of Adam each."""
    class_set = digits(rotations="classes")
    splits = Splits.read(whole / "splits.json", class_set)
    tasks = Tasks(class_set, way=3, shot=1, queries=2, splits=splits, seed=0)
    learner = build(SMALL, class_set.shape, torch.device("cpu")).learner
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    for number in range(7):
        optimizer.zero_grad()
        learner.backward(tasks.batch("train", 2 * number, 2), threads=1)
        optimizer.step()
    stored = safetensors.torch.load_file(whole / "model.safetensors")
    assert stored.keys() == learner.model.state_dict().keys()
    assert all(torch.equal(stored[name], value) for name, value in learner.model.state_dict().items())
    kept = safetensors.torch.load_file(whole / "learner.safetensors")
    assert {f"learned/{name}" for name in learner.get_extra_state()} <= kept.keys()
    assert all(torch.equal(kept[f"learned/{name}"], value) for name, value in learner.get_extra_state().items())


def test_the_global_random_state_stays_as_it_is(tmp_path: Path):
    before = torch.get_rng_state()
    train(replace(SMALL, iterations=1), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_is_told_what_is_written(tmp_path: Path):
    told = Recorder()
    train(SMALL, tmp_path / "run", progress=told)
    assert told.begun == (7, 0)
    assert [row.to_json() for row in told.rows] == rows_of(tmp_path / "run")
    assert told.said == ["found scikit-learn digits: 40 classes in 10 groups; classes: train 24, val 8, test 8"]


def test_without_a_name_the_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        told = Recorder()
        train(replace(SMALL, iterations=1), progress=told)
        assert told.said[0] == f"run folder runs/meta-{number}"
        assert (tmp_path / "runs" / f"meta-{number}" / "results.json").is_file()


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "fomaml"},
        {"algorithm": "anil", "policy": "support"},
        {"algorithm": "reptile", "policy": "reptile"},
        {"algorithm": "proto"},
        {"policy": "per_step", "learn_rates": "layer_step", "multi_step": 5},
        {"policy": "task_norm_i", "checkpoint_steps": True},
        {"policy": "population", "inner_lr": 0.01},
    ],
    ids=lambda value: " ".join(map(str, value.values())),
)
def test_every_algorithm_resumes_to_the_same(tmp_path: Path, settings: dict[str, Any]):
    """Learned rates, the weights of each step, moving weights of losses, kept statistics: all go on as they were."""
    config = replace(SMALL, **{"iterations": 5, "inner_lr": None, "lr": None, "order": None, **settings})
    one, other = tmp_path / "whole", tmp_path / "cut"
    train(config, one)
    with pytest.raises(KeyboardInterrupt):
        train(config, other, progress=StopsAt(5))
    resume(other)
    assert_same(other, one)


class StopsAt(Silent):
    """Interrupts the run when an iteration is told, before it is written down."""

    def __init__(self, number: int) -> None:
        self.number = number

    def iteration(self, row: IterationRow) -> None:
        if row.iteration == self.number:
            raise KeyboardInterrupt


# Kills


class Killed(BaseException):
    """Not an Exception: nothing in the run may catch it."""


def die_at(patch: pytest.MonkeyPatch, file: str, number: int, when: str) -> None:
    """Let the ``number``-th write of a file die before it, in its middle, or after it, cleaning nothing up."""
    seen = 0
    replace_file, append_file = durable.replace_file, durable.append_file

    def dying(write: Any, half: Any) -> Any:
        def writing(path: Path, written: bytes) -> None:
            nonlocal seen
            seen += file in path.name
            now = seen == number and file in path.name
            if now and when == "half":
                half(path, written[: len(written) // 2])
            if now and when != "after":
                raise Killed
            write(path, written)
            if now:
                raise Killed

        return writing

    def half_of_new(path: Path, written: bytes) -> None:
        path.with_name(f".{path.name}.0a1b2c3d{durable.PARTIAL}").write_bytes(written)

    patch.setattr(durable, "append_file", dying(append_file, append_file))
    patch.setattr(durable, "replace_file", dying(replace_file, half_of_new))


MOMENTS = [
    ("config.json", 1, "after"),
    ("splits.json", 1, "half"),
    ("metrics", 1, "before"),
    ("metrics", 1, "half"),
    ("metrics", 2, "after"),
    ("iteration-2", 1, "half"),
    ("iteration-2", 1, "after"),
    ("metrics", 4, "half"),
    ("metrics", 5, "after"),
    ("iteration-6", 1, "half"),
    ("metrics", 9, "after"),
    ("iteration-7", 1, "after"),
    ("learner.safetensors", 1, "half"),
    ("model.safetensors", 1, "half"),
    ("results.json", 1, "half"),
]


@pytest.mark.parametrize(("file", "number", "when"), MOMENTS, ids=str)
def test_killed_at_any_write_and_resumed_is_as_if_nothing_had_happened(
    tmp_path: Path, whole: Path, file: str, number: int, when: str
):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, file, number, when)
        with pytest.raises(Killed):
            train(SMALL, folder)
    resume(folder)
    assert_same(folder, whole)


def test_killed_again_and_again(tmp_path: Path, whole: Path):
    folder = tmp_path / "run"
    begin: Any = lambda: train(SMALL, folder)  # noqa: E731
    for file, number, when in [("metrics", 3, "half"), ("iteration-4", 1, "half"), ("metrics", 2, "after")]:
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, file, number, when)
            with pytest.raises(Killed):
                begin()
        begin = lambda: resume(folder)  # noqa: E731
    resume(folder)
    assert_same(folder, whole)


def test_the_moments_of_learned_weights_matter(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch):
    """The twin: a run that goes on without its optimizer's state ends elsewhere, so that the comparison bites."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(SMALL, folder, progress=StopsAt(5))
    whole_of = run_module.unpack_learner
    monkeypatch.setattr(run_module, "unpack_learner", lambda learner, _, *packed: whole_of(learner, None, *packed))
    resume(folder)
    with pytest.raises(AssertionError):
        assert_same(folder, whole)


@pytest.mark.slow
def test_a_real_kill_from_outside_and_the_command(tmp_path: Path):
    """As a user meets it: the command, SIGKILL whenever it comes, the command again."""
    settings = {"way": 3, "iterations": 60, "meta_batch": 2, "width": 4, "threads": 1}
    settings |= {"eval_tasks": 10, "validate_tasks": 5, "checkpoint_every": 10}
    options = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "frostline", "meta"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed, reference = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen(
        [*command, "--demo", *options, "--out", killed], env=environment, stdout=subprocess.DEVNULL
    ) as process:
        metrics, deadline = killed / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 25):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "results.json").exists()
    done = subprocess.run([*command, "--resume", killed], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout.startswith("resuming after iteration-"), done.stderr) == (True, "")
    train(MetaConfig(**{**DEMO, **settings}), reference)
    assert_same(killed, reference)
    assert (killed / "report.html").read_text().rstrip().endswith("</html>")


def test_a_finished_run_that_is_resumed_gives_the_same_again(whole: Path, tmp_path: Path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    told = Recorder()
    resume(folder, progress=told)
    assert (told.said[0], told.begun, told.rows) == ("resuming after iteration-7", (7, 7), [])
    assert_same(folder, whole)


# Damage, and what is refused


def test_a_damaged_checkpoint_is_passed_over_and_said(whole: Path, tmp_path: Path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    told = Recorder()
    resume(folder, progress=told)
    assert told.said[0].startswith(f"passing over a damaged checkpoint, {newest.name}: cut short or damaged")
    assert told.said[1] == "resuming after iteration-6"
    assert_same(folder, whole)


def test_when_all_are_damaged_it_is_refused_and_nothing_changes(whole: Path, tmp_path: Path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    before = content(folder)
    with pytest.raises(CorruptCheckpoint, match=r"no checkpoint in .* can be read"):
        resume(folder)
    assert content(folder) == before


def test_other_settings_beside_a_resume_are_named_and_nothing_changes(whole: Path, tmp_path: Path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    before = content(folder)
    with pytest.raises(RunFolderError, match="--way 3 there, 5 asked for"):
        resume(folder, asked={"way": 5, "threads": 2})
    assert content(folder) == before
    resume(folder, asked={"way": 3, "threads": 2, "device": "cpu"})
    assert_same(folder, whole)


def test_other_data_under_a_run_are_named(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    monkeypatch.setattr(found_data, "digits", lambda **_: digits())
    with pytest.raises(DataError, match="the splits belong to other data"):
        resume(folder)


def test_a_folder_that_holds_something_is_left_alone(whole: Path, tmp_path: Path):
    before = content(whole)
    with pytest.raises(RunFolderError, match="already holds a run"):
        train(SMALL, whole)
    assert content(whole) == before
    with pytest.raises(RunFolderError, match="no run to resume"):
        resume(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"has no config\.json"):
        resume(tmp_path)


def test_what_is_refused_leaves_no_folder(tmp_path: Path):
    for settings in ({"way": 20}, {"queries": 200}, {"network": "conv4"}, {"policy": "frozen", "splits": "nowhere"}):
        with pytest.raises(Exception, match="fix: "):
            train(replace(SMALL, **settings), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# What is not finite


def poisoned(patch: pytest.MonkeyPatch, which: Any) -> None:
    """Let the tasks of training with these numbers have an image that is NaN."""
    task_of = Tasks.task

    def task(self: Tasks, split: str, index: int) -> Any:
        found = task_of(self, split, index)
        if split == "train" and which(index):
            found.support.inputs[0, 0, 0, 0] = float("nan")
        return found

    patch.setattr(Tasks, "task", task)


def test_a_task_that_is_nan_stops_the_run_and_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    poisoned(monkeypatch, lambda index: index == 9)
    with pytest.raises(InnerLoopDiverged) as caught:
        train(SMALL, tmp_path / "run")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("iteration 5: ")
    assert "  kept: the last good checkpoint, 000002.iteration-4.safetensors" in lines
    assert any(line.startswith("  fix: ") for line in lines)
    assert caught.value.exit_code == 3


def test_or_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    poisoned(monkeypatch, lambda index: index in (5, 8, 9))
    result = train(replace(SMALL, on_nonfinite="skip"), tmp_path / "run")
    rows = [row for row in rows_of(tmp_path / "run") if row["mode"] != "validate"]
    assert [row["skipped"] for row in rows] == [0, 0, 1, 0, 2, 0, 0]
    assert (rows[4]["loss"], rows[4]["accuracy"]) == (None, None)
    assert result.results["skipped"] == 3
    model = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    assert all(bool(value.isfinite().all()) for value in model.values())


def test_a_meta_batch_without_a_task_changes_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    poisoned(monkeypatch, lambda index: index >= 2)
    train(replace(SMALL, on_nonfinite="skip", iterations=3, validate_every=9), tmp_path / "several")
    monkeypatch.undo()
    train(replace(SMALL, on_nonfinite="skip", iterations=1, validate_every=9), tmp_path / "one")
    one, several = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "several"))
    assert one == several


@pytest.mark.parametrize("cut", [False, True], ids=["at once", "resumed in between"])
def test_a_run_in_which_nothing_comes_any_more_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool):
    poisoned(monkeypatch, lambda index: index >= 4)
    config = replace(SMALL, on_nonfinite="skip", iterations=100, meta_batch=2, validate_every=100)
    if cut:
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", progress=StopsAt(9))
    with pytest.raises(TrainingDiverged, match=rf"iteration {2 + HOPELESS}: every task of {HOPELESS} meta-batches"):
        resume(tmp_path / "run") if cut else train(config, tmp_path / "run")


def test_an_error_of_ours_in_a_step_leaves_a_run_that_goes_on(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
):
    backward, calls = Learner.backward, 0

    def failing(self: Any, *given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise MemoryError
        return backward(self, *given, **options)

    monkeypatch.setattr(Learner, "backward", failing)
    with pytest.raises(MemoryError):
        train(SMALL, tmp_path / "run")
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", whole)
