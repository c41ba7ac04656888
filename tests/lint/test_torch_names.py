"""Names of torch and its kin, against torch itself."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

from frostline.lint import torch_names
from frostline.lint.torch_names import hinted, is_module_class, makes_module, shortest


def found(name: str) -> object:
    """What a dotted name of torch stands for."""
    head, _, last = name.rpartition(".")
    try:
        return getattr(importlib.import_module(head), last)
    except ModuleNotFoundError:
        return getattr(found(head), last)


def test_every_class_of_torch_nn_is_told_apart():
    for name, value in vars(torch.nn).items():
        if inspect.isclass(value) and not name.startswith("_"):
            assert is_module_class(f"torch.nn.{name}") is issubclass(value, torch.nn.Module), name
        elif not name.startswith("_"):
            assert not is_module_class(f"torch.nn.{name}"), name


def test_every_optimizer_of_torch_is_known_and_no_scheduler_is():
    for name, value in vars(torch.optim).items():
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer:
            assert torch_names.OPTIMIZERS.match(name), name
    for name, value in vars(torch.optim.lr_scheduler).items():
        if inspect.isclass(value) and issubclass(value, torch.optim.lr_scheduler.LRScheduler):
            assert torch_names.SCHEDULERS.search(name), name
            assert not torch_names.OPTIMIZERS.match(name), name


@pytest.mark.parametrize("names", ["BATCH_NORMS", "DROPOUTS", "NO_GRAD", "CLIPS"])
def test_what_is_listed_exists(names: str):
    for name in getattr(torch_names, names):
        assert found({"torch.nn._BatchNorm": "torch.nn.modules.batchnorm._BatchNorm"}.get(name, name)), name


def test_methods_that_are_listed_exist():
    for name in (*torch_names.ITERATORS, *torch_names.SAME_MODULE, *torch_names.ONLY_MODULES):
        assert callable(getattr(torch.nn.Module, name)), name


def test_short_names_stand_for_the_same_thing():
    for name in (
        "torch.nn.modules.batchnorm._BatchNorm",
        "torch.nn.modules.linear.Linear",
        "torch.optim.adamw.AdamW",
        "torch.nn.parallel.distributed.DistributedDataParallel",
        "torch.nn.parallel.data_parallel.DataParallel",
        "torch.nn.parameter.Parameter",
        "torch.nn.utils.clip_grad.clip_grad_norm_",
        "torch.autograd.grad_mode.no_grad",
    ):
        short = shortest(name)
        assert len(short) < len(name)
        assert shortest(short) == short
        if short != "torch.nn._BatchNorm":
            assert found(short) is found(name), name
    assert shortest("torch.optim.lr_scheduler.StepLR") == "torch.optim.lr_scheduler.StepLR"
    assert shortest("torch.optim.swa_utils.AveragedModel") == "torch.optim.swa_utils.AveragedModel"
    assert shortest("other.nn.modules.linear.Linear") == "other.nn.modules.linear.Linear"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("torchvision.models.resnet18", True),
        ("torchvision.models.ResNet18_Weights", False),
        ("timm.create_model", True),
        ("timm.data.create_transform", False),
        ("torch.hub.load", True),
        ("torch.load", False),
        ("transformers.AutoModel.from_pretrained", True),
        ("transformers.AutoTokenizer.from_pretrained", False),
        ("transformers.AutoConfig.from_pretrained", False),
        ("transformers.ViTImageProcessor.from_pretrained", False),
        ("transformers.AutoModel", False),
    ],
)
def test_what_makes_a_module(name: str, told: bool):
    assert makes_module(name) is told


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("optimizer", "opt optimizer optim optimizer_g g_optimizer opt_d optimiser optimizerD opt1 optG opts"),
        ("scheduler", "scheduler lr_scheduler sched LRSchedulers"),
        ("scaler", "scaler grad_scaler gradscaler"),
        ("loader", "loader train_loader dl val_dl train_dataloader batches"),
        ("accelerator", "accelerator fabric"),
        ("module", "model net backbone student netG my_model text_encoder model_ema classifier critic"),
        ("", "x y option optional adopt models_dir network_name scale loaded modeling subnetwork lr params"),
    ],
)
def test_what_people_call_things(kind: str, names: str):
    assert {name: hinted(name) for name in names.split()} == dict.fromkeys(names.split(), kind)
