"""Settings: what is refused, with which words, and that a configuration survives its file."""

from __future__ import annotations

import json
import math

import pytest

from frostline.errors import ModelError, RunFolderError
from frostline.finetune import FinetuneConfig
from frostline.finetune.config import ConfigError

FOLDER = {"data": "photos", "model": "timm/resnet18"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs 0: too small.\n  fix: 1 or more"),
        ({"batch_size": 0}, "--batch-size 0: too small.\n  fix: 1 or more"),
        ({"workers": -1}, "--workers -1: too small.\n  fix: 0 or more"),
        ({"seed": -1}, "--seed -1: too small.\n  fix: 0 or more"),
        ({"seed": 2**64}, f"--seed {2**64}: too large.\n  fix: less than 2**64"),
        *(
            ({"lr": lr}, f"--lr {lr}: a learning rate is a positive number.\n  fix: --lr 0.002, for example")
            for lr in (-1.0, 0.0, math.nan, math.inf)
        ),
        (
            {"model": "timm/resnet18", "head": "fc", "init": "a.pth", "pretrained": True},
            (
                "--model, --head, --init, --pretrained: without --data the job runs on the embedded digits with a "
                "small model of its own.\n  fix: add --data FOLDER, with one folder of images for each class"
            ),
        ),
        ({"data": "photos"}, "--data photos: which model?\n  fix: add --model timm/resnet18, for example"),
        ({"views": 0}, "--views 0: too small.\n  fix: 1 or more"),
        (
            {"prefix": ("fold",)},
            (
                "--prefix fold: there is no such one.\n"
                "  fix: did you mean 'folded'? some of folded, channels_last, compiled, bfloat16"
            ),
        ),
        (
            {"prefix": ("folded",), "strategy": "full"},
            (
                "--prefix with --strategy full: nothing of the trunk is frozen from the first step to the last.\n"
                "  fix: leave out one of them"
            ),
        ),
        (
            {"use_cache": False, "cache": "features"},
            (
                "--no-cache with --cache-folder or --rebuild-cache: they contradict each other.\n"
                "  fix: leave out one of them"
            ),
        ),
        (
            {"rebuild_cache": True},
            (
                "--rebuild-cache: the features of a run folder are always its own.\n"
                "  fix: --cache-folder FOLDER, or leave it out"
            ),
        ),
        (
            {**FOLDER, "init": "a.pth", "pretrained": True},
            "--init and --pretrained: both say what to start from.\n  fix: leave out one of them",
        ),
    ],
    ids=str,
)
def test_what_is_refused(options: dict[str, object], message: str):
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig(**options)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, ModelError)


def test_a_configuration_survives_its_file():
    given = {"freeze": ("layer1", "!layer1.0"), "prefix": ("folded", "bfloat16"), "cache": "features", "views": 3}
    config = FinetuneConfig(**FOLDER, **given, lr=1e-5, seed=2**64 - 1, naive=True)
    assert FinetuneConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert FinetuneConfig.from_json(json.loads(json.dumps(FinetuneConfig().to_json()))) == FinetuneConfig()


def test_settings_that_a_later_version_added_are_passed_over():
    assert FinetuneConfig.from_json({**FinetuneConfig().to_json(), "new": 1}) == FinetuneConfig()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({**FinetuneConfig().to_json(), "schema_version": 2}, "has schema version 2, this version reads 1"),
        ({}, "has schema version None"),
        ([1], "holds a list, no settings"),
        (None, "holds a NoneType, no settings"),
        ({"schema_version": 1, "epochs": "8"}, "has a setting of the wrong type"),
        ({"schema_version": 1, "freeze": 3}, "has a setting of the wrong type"),
    ],
    ids=str,
)
def test_what_is_no_configuration_is_refused(data: object, message: str):
    with pytest.raises(RunFolderError, match=message) as caught:
        FinetuneConfig.from_json(data)
    assert "fix: " in str(caught.value)


def test_a_setting_out_of_range_in_the_file_is_refused_too():
    with pytest.raises(ConfigError, match="--epochs 0"):
        FinetuneConfig.from_json({**FinetuneConfig().to_json(), "epochs": 0})


def test_the_naive_loop_is_for_the_digits_unless_asked_for():
    assert FinetuneConfig().compares_with_naive
    assert not FinetuneConfig(naive=False).compares_with_naive
    assert not FinetuneConfig(**FOLDER).compares_with_naive
    assert FinetuneConfig(**FOLDER, naive=True).compares_with_naive
