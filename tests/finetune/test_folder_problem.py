"""A new classifier on the user's images: what is built, what is held, and what it starts from."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from frostline.errors import CheckpointError, CorruptData, DataError, ModelError, NothingSelected, RandomStart
from frostline.finetune import FinetuneConfig
from frostline.finetune.factory import call_factory
from frostline.finetune.folder_problem import folder_problem, task_name

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::frostline.errors.TorchvisionWithoutOperators"),
]


@pytest.fixture
def config(photos: Path, small_net: str) -> FinetuneConfig:
    return FinetuneConfig(data=str(photos), model=f"{small_net}:Net", epochs=2, workers=0)


def saved(model: nn.Module, path: Path) -> str:
    torch.save({"state_dict": model.state_dict()}, path)
    return str(path)


def net(name: str, classes: int) -> nn.Module:
    return call_factory(f"{name}:Net", classes)[0]


# What is built


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("data/bees.v2/", "bees_v2"),
        ("Fotos 2024!", "Fotos_2024"),
        ("original", "original_new"),
        ("photos/train", "train_new"),
        ("keys", "keys_new"),
        ("...", "images"),
        ("été", "été"),
    ],
)
def test_the_task_is_named_after_the_folder(tmp_path: Path, folder: str, name: str):
    place = str(tmp_path / folder) if folder != "..." else "/"
    assert task_name(place) == name


def test_the_problem_is_one_phase_with_the_old_head_kept(config: FinetuneConfig, photos: Path):
    problem = folder_problem(config)
    task = task_name(str(photos))
    assert list(problem.model.heads) == ["original", task]
    assert problem.model.heads[task].out_features == 2
    assert problem.probe_heads == (task,)
    (phase,) = problem.phases
    assert (phase.task, phase.epochs, phase.lr, phase.trunk) == (task, 2, config.lr, ("*",))
    assert (len(phase.train), len(phase.val)) == (12, 8)
    facts = dict(problem.facts)
    assert facts["data"] == "12 images to train, 8 to validate, 2 classes"
    assert facts["held of the trunk"] == "all of it"
    assert problem.title == f"{config.model} learns dark, light"


def test_training_augments_and_validation_does_not(config: FinetuneConfig):
    (phase,) = folder_problem(config).phases
    train, val = phase.train, phase.val
    first = train[0][0]
    train.set_epoch(1)
    assert not torch.equal(train[0][0], first)
    plain = val[0][0]
    val.set_epoch(1)
    assert torch.equal(val[0][0], plain)


def test_the_seed_decides_over_everything_and_the_global_state_over_nothing(config: FinetuneConfig, photos: Path):
    heads = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        state = torch.random.get_rng_state()
        model = folder_problem(replace(config, seed=seed)).model
        assert torch.equal(torch.random.get_rng_state(), state)
        heads.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(map(torch.equal, heads[0], heads[1]))
    assert not any(map(torch.equal, heads[0][-2:], heads[2][-2:]))


def test_what_is_exported_fits_the_users_model_with_this_number_of_classes(config: FinetuneConfig, small_net: str):
    problem = folder_problem(config)
    tensors = problem.export(problem.model)
    user = net(small_net, 2)
    user.load_state_dict(tensors)  # strictly, names and shapes
    inputs = torch.randn(2, 3, 64, 64)
    problem.model.eval()
    assert torch.equal(user.eval()(inputs), problem.model(inputs, problem.phases[0].task))


# What is held


def test_selectors_are_of_the_trunk(config: FinetuneConfig):
    problem = folder_problem(replace(config, freeze=("stem", "!norm")))
    assert problem.phases[0].trunk == ("stem", "!norm")
    assert dict(problem.facts)["held of the trunk"] == "stem, !norm"


def test_a_selector_that_matches_nothing_names_the_nearest(config: FinetuneConfig):
    with pytest.raises(NothingSelected, match=r"'stam\.\*' matched nothing") as caught:
        folder_problem(replace(config, freeze=("stam.*",)))
    assert "stem" in str(caught.value)


# What it starts from


def test_random_weights_of_a_library_are_warned_of(photos: Path):
    with pytest.warns(RandomStart, match="neither --init nor --pretrained"):
        problem = folder_problem(FinetuneConfig(data=str(photos), model="timm/resnet10t", workers=0))
    assert problem.warnings[0].startswith("the trunk has random weights")
    assert dict(problem.facts)["started from"] == "random weights"


def test_a_factory_may_have_loaded_its_weights_itself(config: FinetuneConfig):
    """Warnings are errors here: there is none."""
    problem = folder_problem(config)
    assert problem.warnings == ()
    assert dict(problem.facts)["model"].endswith("weights as the factory left them")


@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_a_checkpoint_with_any_number_of_classes(config: FinetuneConfig, small_net: str, tmp_path: Path, classes: int):
    source = net(small_net, classes)
    torch.nn.init.normal_(source.norm.running_mean)
    problem = folder_problem(replace(config, init=saved(source, tmp_path / "a.pth")))
    original = problem.model.heads["original"]
    assert torch.equal(original.weight, source.out.weight)
    assert original.out_features == classes
    assert torch.equal(problem.model.trunk.norm.running_mean, source.norm.running_mean)
    inputs = torch.randn(2, 3, 64, 64)
    assert torch.equal(problem.model.eval()(inputs, "original"), source.eval()(inputs))
    assert dict(problem.facts)["started from"].startswith("a.pth -> ")
    assert problem.warnings == ()


def test_a_checkpoint_without_a_classifier(config: FinetuneConfig, small_net: str, tmp_path: Path):
    source = net(small_net, 2)
    tensors = {name: value for name, value in source.state_dict().items() if not name.startswith("out.")}
    torch.save(tensors, tmp_path / "trunk.pth")
    problem = folder_problem(replace(config, init=str(tmp_path / "trunk.pth")))
    assert torch.equal(problem.model.trunk.stem.weight, source.stem.weight)


def test_a_name_that_wrappers_use_too_stays_where_it_is_the_models_own(
    config: FinetuneConfig, small_net: str, tmp_path: Path
):
    """``module.`` is what DataParallel puts in front, and here it is a name of the model."""
    Path("wrapped_of_tests.py").write_text(
        f"from torch import nn\nimport {small_net}\n"
        "class Wrapped(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        f"        self.module = {small_net}.Net(num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.module(x)\n"
    )
    source = call_factory("wrapped_of_tests:Wrapped", 5)[0]
    options = {"model": "wrapped_of_tests:Wrapped", "init": saved(source, tmp_path / "a.pth")}
    problem = folder_problem(replace(config, **options))
    assert torch.equal(problem.model.heads["original"].weight, source.module.out.weight)


def test_a_classifier_of_another_width_is_refused(config: FinetuneConfig, small_net: str, tmp_path: Path):
    source = net(small_net, 2)
    source.out = nn.Linear(7, 2)
    with pytest.raises(ModelError) as caught:
        folder_problem(replace(config, init=saved(source, tmp_path / "a.pth")))
    assert str(caught.value) == (
        f"the classifier of {tmp_path / 'a.pth'} does not fit the model\n"
        "  expected: out.weight with 6 columns\n  found: shape (2, 7)\n"
        "  fix: the model that the checkpoint was made with"
    )


def test_a_checkpoint_of_another_model_is_refused(config: FinetuneConfig, tmp_path: Path):
    with pytest.raises(CheckpointError, match="does not fit Net; nothing was changed"):
        folder_problem(replace(config, init=saved(nn.Linear(2, 2), tmp_path / "a.pth")))


# Heads


def test_another_head_that_is_not_the_last_is_refused(config: FinetuneConfig):
    with pytest.raises(ModelError, match="--head NAME with the dotted path of") as caught:
        folder_problem(replace(config, head="gate"))
    assert caught.value.exit_code == 2


def test_a_factory_that_takes_no_number_of_classes_keeps_its_own(config: FinetuneConfig, small_net: str):
    problem = folder_problem(replace(config, model=f"{small_net}:own_size"))
    assert [head.out_features for head in problem.model.heads.values()] == [3, 2]


# Images that cannot be read


def test_bad_images_are_refused_or_counted(config: FinetuneConfig, photos: Path, tmp_path: Path):
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    (data / "train" / "dark" / "0.png").write_bytes(b"")
    (data / "val" / "light" / "1.png").write_bytes(b"no image")
    bad: dict[str, Any] = {"data": str(data)}
    with pytest.raises(CorruptData, match="2 of 20 images"):
        folder_problem(replace(config, **bad))
    problem = folder_problem(replace(config, **bad, skip_bad_images=True))
    said = "2 images could not be read and were left out, train/dark/0.png for example"
    assert problem.warnings == problem.notes == (said,)
    assert dict(problem.facts)["data"] == "11 images to train, 7 to validate, 2 classes"
    (data / "val" / "light" / "1.png").unlink()
    problem = folder_problem(replace(config, **bad, skip_bad_images=True))
    assert problem.notes == ("1 image could not be read and was left out: train/dark/0.png",)


def test_one_folder_is_split_by_the_share(config: FinetuneConfig, photos: Path):
    problem = folder_problem(replace(config, data=str(photos / "train"), val_share=0.5))
    assert (len(problem.phases[0].train), len(problem.phases[0].val)) == (6, 6)
    assert problem.phases[0].task == "train_new"


def test_one_class_is_refused(config: FinetuneConfig, tmp_path: Path):
    (tmp_path / "data" / "dark").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "dark" / "a.png")
    with pytest.raises(DataError, match="has one class"):
        folder_problem(replace(config, data=str(tmp_path / "data")))
