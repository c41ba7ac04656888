"""``frostline finetune --task`` as its users meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def labels(photos: Path, tmp_path: Path) -> Path:
    """``kind.csv`` with a split, and ``even.csv`` without one."""
    images = sorted(path.relative_to(photos) for path in photos.rglob("*.png"))
    kind = "".join(f"{path},{path.parts[1]},{path.parts[0]}\n" for path in images)
    (tmp_path / "kind.csv").write_text("image,label,split\n" + kind)
    even = "".join(f"{path},{'odd' if int(path.stem) % 2 else 'even'}\n" for path in images)
    (tmp_path / "even.csv").write_text("image,label\n" + even)
    return tmp_path


@pytest.fixture
def given(photos: Path, factory: str, labels: Path) -> list[object]:
    return ["finetune", "--data", photos, "--model", f"{factory}:Net", "--workers", 0, "--epochs", 2, "--out", "run"]


@pytest.fixture
def both(labels: Path) -> list[str]:
    return ["--task", f"kind={labels / 'kind.csv'}", "--task", f"even={labels / 'even.csv'}"]


def test_it_tells_what_became_of_each_head(command: Any, given: list[object], both: list[str]):
    done = command(*given, *both)
    assert done.code == 0
    # Torchvision's own warning comes once in a process.
    assert all(line.startswith("warning: torchvision's compiled operators") for line in done.err.splitlines())
    lines = done.out.splitlines()
    assert lines[1].startswith("features of 12 samples: ")
    assert lines[1].index(", all to compute, ") < lines[1].index(" free, limit ")
    assert lines[2] == "training 2 heads side by side: 2 epochs"
    heading = next(line for line in lines if line.startswith("head "))
    assert heading.split()[:5] == ["head", "classes", "train", "val", "accuracy"]
    assert [line.split()[0] for line in lines if "all epochs" in line] == ["kind", "even"]
    certificate = json.loads(Path("run/certificate.json").read_text())
    held = len(certificate["held"])
    assert f"held: {held} of {held} state entries of the trunk equal to the bit" in lines
    assert "heads: no head moved another one" in lines
    assert "run folder   run" in lines
    assert "report       run/report.html" in lines


def test_json_is_all_that_standard_output_has(command: Any, given: list[object], both: list[str]):
    done = command(*given, *both, "--json", "--patience", 1)
    assert done.code == 0
    result = json.loads(done.out)
    assert result["isolated"] is True
    assert set(result["accuracy"]) == {"kind", "even"}
    assert result["certificate"] == json.loads(Path("run/certificate.json").read_text())
    assert json.loads(Path("run/config.json").read_text())["patience"] == 1


def test_images_may_lie_beside_the_file(command: Any, factory: str, photos: Path):
    (photos / "beside.csv").write_text(
        "image,label\n"
        + "".join(f"train/{name}/{index}.png,{name}\n" for name in ("dark", "light") for index in "0123")
    )
    done = command(
        *("finetune", "--model", f"{factory}:Net", "--task", f"kind={photos / 'beside.csv'}", "--workers", 0),
        *("--epochs", 1, "--out", "run"),
    )
    assert done.code == 0, done.err
    assert "training 1 head: 1 epoch" in done.out


def test_a_head_that_diverges_is_named_and_the_others_are_kept(
    command: Any, given: list[object], labels: Path, both: list[str], monkeypatch: pytest.MonkeyPatch
):
    from frostline.fast import heads

    def wild(name: str, task: Any, example: Any) -> Any:
        run = heads_run(name, task, example)
        if name == "even":
            with torch.no_grad():
                run.module.weight.fill_(float("nan"))
        return run

    heads_run = heads.HeadRun
    monkeypatch.setattr(heads, "HeadRun", wild)
    done = command(*given, *both)
    assert done.code == 1
    assert "even diverged: the loss became nan in epoch 1, step 1; it is not in the model" in done.out
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--strategy", "full"], "--strategy with --task"),
        (["--freeze", "stem"], "--freeze with --task"),
        (["--naive"], "--naive with --task"),
        (["--lr-schedule", "cosine"], "--lr-schedule with --task"),
        (["--patience", "0"], "--patience 0: too small"),
        (["--task", "kind=other.csv"], "there is a task 'kind' already"),
        (["--task", "other.csv"], "fix: --task other=other.csv"),
        (["--resume", "run"], "--task"),
    ],
)
def test_what_goes_ill_with_it_is_refused(
    command: Any, given: list[object], both: list[str], more: list[str], said: str
):
    done = command(*given, *both, *more)
    assert done.code == 2
    assert said in done.err
    assert "  fix: " in done.err
    assert not Path("run").exists()


def test_patience_without_a_task_is_refused(command: Any, given: list[object]):
    done = command(*given, "--patience", 2)
    assert (done.code, "--patience is for heads that train with --task" in done.err) == (2, True)


def test_a_run_with_tasks_is_not_resumed(command: Any, given: list[object], both: list[str]):
    assert command(*given, *both).code == 0
    done = command("finetune", "--resume", "run")
    assert done.code == 2
    assert "a run with --task is not resumed" in done.err
