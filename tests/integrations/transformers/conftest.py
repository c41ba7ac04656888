"""Small models of transformers from their configurations, and a Trainer over data that is made here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    # Where torchvision's operators do not load beside this torch, transformers cannot be imported at all.
    warnings.simplefilter("ignore")
    from frostline.compat import import_torchvision

    import_torchvision()
    import transformers
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        ResNetConfig,
        ResNetForImageClassification,
        ViTConfig,
        ViTForImageClassification,
    )


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


@pytest.fixture
def images() -> Rows:
    generator = torch.Generator().manual_seed(0)
    return Rows(
        [
            {"pixel_values": torch.randn(3, 16, 16, generator=generator) + n % 3, "labels": torch.tensor(n % 3)}
            for n in range(32)
        ]
    )


@pytest.fixture
def sentences() -> Rows:
    return Rows([{"input_ids": torch.arange(8) + n % 4, "labels": torch.tensor(n % 2)} for n in range(32)])


@pytest.fixture
def resnet() -> Callable[[], nn.Module]:
    """Makes a ResNet with batch norms, always with the same values."""

    def make(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        return ResNetForImageClassification(ResNetConfig(num_labels=3, **sizes))

    return make


@pytest.fixture
def bert() -> Callable[[], nn.Module]:
    """Makes a BERT with dropout."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        return BertForSequenceClassification(BertConfig(vocab_size=40, **sizes))

    return make


@pytest.fixture
def vit() -> Callable[[], nn.Module]:
    """Makes a ViT of two layers."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        return ViTForImageClassification(ViTConfig(num_labels=3, image_size=16, patch_size=8, **sizes))

    return make


@pytest.fixture
def trainer_of(tmp_path: Path) -> Callable[..., transformers.Trainer]:
    """Makes a Trainer of three epochs of four steps; arguments of the Trainer and of its TrainingArguments together."""

    def make(model: nn.Module | None, data: Rows, *callbacks: Any, **given: Any) -> transformers.Trainer:
        own = {key: given.pop(key) for key in ("optimizers", "model_init", "compute_metrics") if key in given}
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 8,
            "num_train_epochs": 3,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_strategy": "no",
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            **given,
        }
        return transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(**settings),
            train_dataset=data,
            eval_dataset=data,
            callbacks=list(callbacks),
            **own,
        )

    return make


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What transformers logs as a warning."""
    import logging

    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    for name in ("transformers", "frostline"):
        logging.getLogger(name).addHandler(handler)
    yield lines
    for name in ("transformers", "frostline"):
        logging.getLogger(name).removeHandler(handler)
