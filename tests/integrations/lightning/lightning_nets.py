"""A LightningModule with everything that moves by itself, and trainers that are quick and silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

# What Lightning says of its trainers in small tests, by its own messages.
LIGHTNINGS_OWN = (
    "ignore:.*module.s. in eval mode at the start of training.*",
    "ignore:.*does not have many workers.*",
    "ignore:.*You're resuming from a checkpoint that ended before the epoch ended.*",
    "ignore:.*Checkpoint directory .* exists and is not empty.*",
    "ignore:.*You defined a `validation_step` but have no `val_dataloader`.*",
    "ignore:.*callbacks used to create the checkpoint need to be provided.*",
    "ignore:.*isinstance.treespec, LeafSpec.. is deprecated.*",
)


class Net(LightningModule):
    """A backbone with statistics and dropout below a head; the optimizer has all of it."""

    def __init__(self, make: Callable[[Any], Any] | None = None, schedule: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        # Statistics that were learned: not those that a layer is reset to.
        self.backbone[1].running_mean.fill_(0.5)
        self.backbone[1].running_var.fill_(2.0)
        self.backbone[1].num_batches_tracked.fill_(7)
        self.head = nn.Linear(8, 2)
        self._make, self._schedule = make, schedule

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(inputs))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        made = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        optimizer = made if self._make is None else self._make(self)
        return optimizer if self._schedule is None else ([optimizer], [self._schedule(optimizer)])


def loader(batch_size: int = 8) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(32, 4, generator=generator), torch.randint(0, 2, (32,), generator=generator)
    return DataLoader(TensorDataset(inputs, labels), batch_size=batch_size)


def trainer(*callbacks: Any, kind: Any = Trainer, **settings: Any) -> Any:
    quick = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 2,
    }
    return kind(callbacks=list(callbacks), **(quick | settings))


def fit(net: LightningModule, *callbacks: Any, ckpt_path: Any = None, **settings: Any) -> Any:
    made = trainer(*callbacks, **settings)
    made.fit(net, loader(), loader(), ckpt_path=ckpt_path)
    return made


class At(Callback):
    """Calls something when a hook comes."""

    def __init__(self, **hooks: Callable[[Any, Any], None]) -> None:
        for name, do in hooks.items():
            setattr(self, name, lambda trainer, module, *rest, do=do, **more: do(trainer, module))
