"""Several tasks on one trunk: what is read how often, what a head comes out as, and what the run folder holds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from frostline.errors import CorruptData, DataError, RunFolderError, TrainingDiverged
from frostline.fast.feature_source import features_of
from frostline.finetune import tasks_job
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.factory import call_factory
from frostline.finetune.tasks_config import TasksConfig
from frostline.finetune.tasks_features import TasksFeatures, features_for
from frostline.finetune.tasks_job import run_tasks
from frostline.state.digest import digest_all
from frostline.state.inventory import inventory
from frostline.tasks import TaskModel

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::frostline.errors.TorchvisionWithoutOperators"),
]


@pytest.fixture
def config(photos: Path, small_net: str, tmp_path: Path) -> TasksConfig:
    """Whether a photo is dark, over all of them; and whether its number is even, over those to validate on."""
    images = sorted(path.relative_to(photos) for path in photos.rglob("*.png"))
    kind = "".join(f"{path},{path.parts[1]},{path.parts[0]}\n" for path in images)
    (tmp_path / "kind.csv").write_text("image,label,split\n" + kind)
    even = "".join(
        f"{path},{'even' if int(path.stem) % 2 == 0 else 'odd'}\n" for path in images if path.parts[0] == "val"
    )
    (tmp_path / "even.csv").write_text("image,label\n" + even)
    settings = FinetuneConfig(data=str(photos), model=f"{small_net}:Net", epochs=3, workers=0, batch_size=4, lr=0.05)
    return TasksConfig({"kind": str(tmp_path / "kind.csv"), "even": str(tmp_path / "even.csv")}, settings)


def bits(module: nn.Module) -> dict[str, str]:
    return digest_all(inventory(module).tensors)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images that a run reads for the trunk."""
    read: list[Path] = []

    class Counted(tasks_job.ImageDataset):
        def __getitem__(self, index: int) -> Any:
            read.append(self.samples[index][0])
            return super().__getitem__(index)

    monkeypatch.setattr(tasks_job, "ImageDataset", Counted)
    return read


def test_each_image_is_read_once_for_all_tasks(config: TasksConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read = counted(monkeypatch)
    result = run_tasks(config, tmp_path / "run")
    assert len(set(read)) == result.images == 20
    # Some are looked at before: whether they are random, and whether the trunk treats them alike in any batch.
    assert len(read) < 20 + 20
    assert [(row.name, len(result.tasks[row.name].train)) for row in result.trained.rows] == [("kind", 12), ("even", 6)]
    assert result.isolated
    assert result.certificate["moved"] == []


def test_a_head_comes_out_as_in_a_run_of_its_own(config: TasksConfig, tmp_path: Path):
    both = run_tasks(config, tmp_path / "both")
    for name, file in config.tasks.items():
        alone = run_tasks(replace(config, tasks={name: file}), tmp_path / name)
        assert bits(alone.trained.heads[name]) == bits(both.trained.heads[name])


def test_the_run_folder_holds_what_a_run_leaves(config: TasksConfig, tmp_path: Path, recorder: Any):
    state = torch.random.get_rng_state()
    result = run_tasks(config, tmp_path / "run", progress=recorder)
    assert torch.equal(torch.random.get_rng_state(), state)
    folder = result.folder
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "certificate.json",
        "model.safetensors",
        "report.html",
    }
    assert json.loads((folder / "config.json").read_text()) == config.to_json()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        (name, epoch) for epoch in (1, 2, 3) for name in ("kind", "even")
    ]
    assert all(row["val_loss"] > 0 and 0 <= row["accuracy"] <= 1 for row in rows)
    assert recorder.said[0] == "reading 20 images, each once a view, for one run through the trunk"
    assert recorder.said[1].startswith("features of 20 samples: ")
    assert recorder.said[2:] == ["training 2 heads side by side: 3 epochs"]
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate == result.certificate == result.to_json()["certificate"]
    assert certificate["isolation"]["isolated"] is True
    assert certificate["tasks"]["even"]["classes"] == ["even", "odd"]
    held = certificate["held"]
    assert {path.split(".")[0] for path in held} == {"trunk"}
    assert all(row["equal"] and row["before"] == row["after"] for row in held.values())
    assert "trunk.norm.running_mean" in held
    assert json.loads(json.dumps(result.to_json()))["isolated"] is True


def test_the_model_is_a_task_model(config: TasksConfig, tmp_path: Path):
    result = run_tasks(config, tmp_path / "run")
    trunk = call_factory(str(config.settings.model), 2)[0]
    trunk.out = nn.Identity()
    model = TaskModel(trunk, {name: nn.Linear(6, 2) for name in config.tasks})
    with safe_open(result.folder / "model.safetensors", "pt") as file:
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        assert json.loads(file.metadata()["classes"]) == {"kind": ["dark", "light"], "even": ["even", "odd"]}
    x = torch.rand(5, 3, 40, 40)
    (features,) = features_of(model.trunk, x)
    for name, head in result.trained.heads.items():
        assert torch.equal(model.heads[name](features), head(features))


def test_features_can_come_from_elsewhere(config: TasksConfig, tmp_path: Path):
    asked: list[int] = []

    def kept(trunk: nn.Module, plain: Any, *rest: Any) -> TasksFeatures:
        asked.append(len(plain))
        return features_for(trunk, plain, *rest)

    assert run_tasks(config, tmp_path / "run", features=kept).isolated
    assert asked == [20]


def test_a_features_maker_that_moves_the_trunk_is_found(config: TasksConfig, tmp_path: Path):
    """The failing twin: the features as one computes them without a thought, in train mode."""

    def naive(trunk: nn.Module, plain: Any, *_: Any) -> TasksFeatures:
        trunk.train()
        return TasksFeatures(trunk(torch.stack([plain[index][0] for index in range(len(plain))])).detach())

    result = run_tasks(config, tmp_path / "run", features=naive)
    assert not result.isolated
    assert "trunk.norm.running_mean" in result.certificate["moved"]


def test_patience_keeps_the_best_head(config: TasksConfig, tmp_path: Path):
    settings = replace(config.settings, epochs=30, lr=0.5)
    result = run_tasks(replace(config, settings=settings, patience=2), tmp_path / "run")
    told = result.certificate["tasks"]
    assert all(row["epoch"] == row["best_epoch"] for row in told.values())
    assert any(row["stopped_early"] for row in told.values())


# What is refused


def refused(config: TasksConfig, out: Path, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        run_tasks(config, out)
    return str(caught.value)


def broken(config: TasksConfig, tmp_path: Path, count: int) -> TasksConfig:
    photos = shutil.copytree(str(config.settings.data), tmp_path / "broken")
    for path in sorted(photos.rglob("*.png"))[:count]:
        path.write_bytes(b"no image")
    return replace(config, settings=replace(config.settings, data=str(photos)))


def test_images_that_cannot_be_read_are_named_or_left_out(config: TasksConfig, tmp_path: Path, recorder: Any):
    config = broken(config, tmp_path, 2)
    message = refused(config, tmp_path / "run", CorruptData)
    assert message.startswith("2 of 20 images cannot be read\n  ")
    assert message.endswith(
        "dark/1.png: not an image\n  fix: repair or remove them, or leave them out with --skip-bad-images"
    )
    assert not (tmp_path / "run").exists()
    config = replace(config, settings=replace(config.settings, skip_bad_images=True))
    result = run_tasks(config, tmp_path / "run", progress=recorder)
    assert result.images == 18
    assert len(result.tasks["kind"].train) == 10
    assert recorder.said[0].startswith("2 images could not be read and were left out, ")


def test_images_none_of_which_can_be_read_are_refused(config: TasksConfig, tmp_path: Path):
    config = broken(config, tmp_path, 20)
    config = replace(config, settings=replace(config.settings, skip_bad_images=True))
    message = refused(config, tmp_path / "run", CorruptData)
    assert message.startswith("20 of 20 images cannot be read\n  ")
    assert "(+12 more)\n  fix: repair or remove them" in message
    assert "--skip-bad-images" not in message


def test_a_class_that_is_left_without_images_is_refused(config: TasksConfig, tmp_path: Path):
    config = broken(config, tmp_path, 6)
    config = replace(config, settings=replace(config.settings, skip_bad_images=True))
    assert "nothing that can be read to train on for dark" in refused(config, tmp_path / "run", DataError)


def test_a_folder_with_a_run_is_refused(config: TasksConfig, tmp_path: Path):
    run_tasks(config, tmp_path / "run")
    assert "already holds a run" in refused(config, tmp_path / "run", RunFolderError)


def test_heads_that_all_diverge_end_the_run(config: TasksConfig, tmp_path: Path):
    config = replace(config, settings=replace(config.settings, lr=1e38))
    message = refused(config, tmp_path / "run", TrainingDiverged)
    assert message.startswith("every head diverged; 'kind': the ")
    assert "--lr 1e+38" in message
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_several_processes_are_refused(config: TasksConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--task on 2 processes" in refused(config, tmp_path / "run", ValueError)


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::frostline.errors.RandomStart")
def test_two_tasks_on_photographs(bees_and_ants: Path, tmp_path: Path):
    kind: list[str] = []
    upright: list[str] = []
    for path in sorted(bees_and_ants.rglob("*.jpg")):
        name = path.relative_to(bees_and_ants)
        kind.append(f"{name},{name.parts[1]},{name.parts[0]}")
        with Image.open(path) as image:
            upright.append(f"{name},{'tall' if image.height > image.width else 'wide'}")
    for name, rows in (("kind,split", kind), ("upright", upright)):
        title, _, split = name.partition(",")
        header = "image,label" + f",{split}" * bool(split)
        (tmp_path / f"{title}.csv").write_text("\n".join([header, *rows]))
    tasks = {name: str(tmp_path / f"{name}.csv") for name in ("kind", "upright")}
    settings = FinetuneConfig(data=str(bees_and_ants), model="timm/test_resnet", epochs=2, workers=0)
    result = run_tasks(TasksConfig(tasks, settings), tmp_path / "run")
    assert result.isolated
    assert result.images == 32
