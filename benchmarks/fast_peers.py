"""Training a new head on a frozen trunk as users of other libraries write it: a plain loop, Lightning, and fastai.

All sides start from the same trunk and the same head, see the same images in the same order, and step with the same
optimizer. Where a library's usual form trains or moves something else as well (batch norm in the trunk), it does here.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from fast_images import Order, Pictures
from measure import others
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from frostline.compat import import_torchvision


@dataclass(frozen=True)
class Job:
    """What every side has to do.

    Attributes:
        trunk: a ResNet of torchvision with its own ``fc``; each side takes a copy.
        head: what takes the place of ``fc``; each side takes a copy.
        train: images to train on.
        val: images to judge by after each epoch.
        epochs: how many.
        batch: images a step.
        rate: of AdamW.
        weight_decay: of AdamW.
        seed: of the order of the images.
    """

    trunk: nn.Module
    head: nn.Linear
    train: Pictures
    val: Pictures
    epochs: int
    batch: int = 32
    rate: float = 1e-3
    weight_decay: float = 0.01
    seed: int = 0

    def model(self) -> nn.Module:
        """A copy of the trunk with a copy of the head as its ``fc``."""
        model = copy.deepcopy(self.trunk)
        model.fc = copy.deepcopy(self.head)
        return model

    def optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=self.rate, weight_decay=self.weight_decay)

    def loaders(self) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Of both splits; the images lie in memory, so that workers would only cost."""
        train = DataLoader(self.train, self.batch, sampler=Order(self.train, self.seed))
        return train, DataLoader(self.val, self.batch)


@dataclass(frozen=True)
class Outcome:
    """What came of a side.

    Attributes:
        epochs: seconds of each epoch with its evaluation; the first includes all that comes before it.
        correct: images to judge by that were right after each epoch.
        others: share of the machine that other processes took.
    """

    epochs: list[float]
    correct: list[int]
    others: float

    def seconds(self, epochs: int) -> float:
        """Of so many epochs: those that were run, and each one more at the mean of those after the first."""
        missing = epochs - len(self.epochs)
        return sum(self.epochs[:epochs]) + max(0, missing) * self.later

    @property
    def later(self) -> float:
        """Seconds of an epoch after the first."""
        rest = self.epochs[1:] or self.epochs
        return sum(rest) / len(rest)


class Clock:
    """Notes the end of each epoch, and how many images were right then."""

    def __init__(self) -> None:
        self._watched = others()
        self._last = time.perf_counter()
        self._epochs: list[float] = []
        self._correct: list[int] = []

    def epoch_end(self, correct: int) -> None:
        now = time.perf_counter()
        self._epochs.append(now - self._last)
        self._correct.append(correct)
        self._last = now

    def outcome(self) -> Outcome:
        return Outcome(self._epochs, self._correct, self._watched())


Side: TypeAlias = "Callable[[Job], Outcome]"


# The plain loop -----------------------------------------------------------------------------------------------------


def plain(job: Job) -> Outcome:
    """What a user writes: nothing of the trunk requires a gradient, and it stays in eval mode."""
    clock = Clock()
    model = job.model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc."))
    optimizer = job.optimizer(model.fc.parameters())
    train, val = job.loaders()
    for _ in range(job.epochs):
        plain_epoch(model, optimizer, train)
        clock.epoch_end(right(model, val))
    return clock.outcome()


def plain_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any]) -> None:
    """One epoch of it."""
    model.eval()
    model.fc.train()
    for images, labels in loader:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()


@torch.no_grad()
def right(model: nn.Module, loader: DataLoader[Any]) -> int:
    """How many images are right, in eval mode."""
    model.eval()
    return sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)


# Lightning ----------------------------------------------------------------------------------------------------------


def lightning_transfer(job: Job) -> Outcome:
    """The form of the page "Transfer learning" of its documentation: the trunk in eval mode under ``no_grad``."""
    return _lightning(job, backbone_finetuning=False)


def lightning_backbone(job: Job) -> Outcome:
    """The callback `BackboneFinetuning`, that unfreezes after the last epoch; it leaves batch norm training."""
    return _lightning(job, backbone_finetuning=True)


def _lightning(job: Job, *, backbone_finetuning: bool) -> Outcome:
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning
        from lightning.pytorch.callbacks import BackboneFinetuning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            model = copy.deepcopy(job.trunk)
            self.backbone = nn.Sequential(*list(model.children())[:-1])
            self.head = copy.deepcopy(job.head)
            self.correct = 0
            if not backbone_finetuning:
                self.backbone.eval()

        def forward(self, images: Tensor) -> Tensor:
            if backbone_finetuning:
                return self.head(self.backbone(images).flatten(1))
            self.backbone.eval()
            with torch.no_grad():
                features = self.backbone(images).flatten(1)
            return self.head(features)

        def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
            return cross_entropy(self(batch[0]), batch[1])

        def on_validation_epoch_start(self) -> None:
            self.correct = 0

        def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
            self.correct += int((self(batch[0]).argmax(1) == batch[1]).sum())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            # As the example in the documentation of the callback has it.
            return job.optimizer(self.head.parameters())

    class Ends(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            del trainer
            clock.epoch_end(pl_module.correct)

    clock = Clock()
    module = Model()
    if not backbone_finetuning:
        module.backbone.requires_grad_(False)
    callbacks: list[Any] = [Ends()]
    if backbone_finetuning:
        callbacks.append(BackboneFinetuning(unfreeze_backbone_at_epoch=job.epochs))
    with warnings.catch_warnings():
        # About workers of the loader, which images in memory do not need.
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=job.epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=callbacks,
        )
        trainer.fit(module, *job.loaders())
    return clock.outcome()


# fastai -------------------------------------------------------------------------------------------------------------


def fastai(job: Job) -> Outcome:
    """`Learner.freeze` and `fit`, as they are: batch norm goes on training."""
    return _fastai(job, train_bn=True)


def fastai_without_bn(job: Job) -> Outcome:
    """The same with ``train_bn=False``: the statistics of batch norm still move, because the trunk is in train mode."""
    return _fastai(job, train_bn=False)


def _fastai(job: Job, *, train_bn: bool) -> Outcome:
    import_torchvision()
    with warnings.catch_warnings():
        # It is built on torch.jit.script.
        warnings.simplefilter("ignore")
        from fastai.callback.core import Callback
        from fastai.callback.progress import ProgressCallback  # noqa: F401  (gives Learner its no_bar)
        from fastai.data.core import DataLoaders
        from fastai.learner import Learner
        from fastai.metrics import accuracy
        from fastai.optimizer import OptimWrapper
        from fastai.torch_core import params

    class Ends(Callback):  # type: ignore[misc]
        # After the recorder, which has the accuracy.
        order = 100

        def after_epoch(self) -> None:
            clock.epoch_end(round(float(self.learn.recorder.values[-1][-1]) * len(job.val)))

    clock = Clock()
    model = job.model()
    trunk = nn.ModuleList(child for name, child in model.named_children() if name != "fc")
    learner = Learner(
        DataLoaders(*job.loaders(), device=torch.device("cpu")),
        model,
        loss_func=nn.CrossEntropyLoss(),
        opt_func=partial(OptimWrapper, opt=torch.optim.AdamW),
        splitter=lambda whole: [params(trunk), params(whole.fc)],
        metrics=[accuracy],
        wd=job.weight_decay,
        train_bn=train_bn,
        cbs=[Ends()],
    )
    with warnings.catch_warnings(), learner.no_bar(), learner.no_logging():
        warnings.simplefilter("ignore")
        learner.freeze()
        learner.fit(job.epochs, lr=job.rate)
    return clock.outcome()


@dataclass(frozen=True)
class Peer:
    """A side that is compared with.

    Attributes:
        name: of it.
        run: trains a head.
        package: that it needs.
    """

    name: str
    run: Side
    package: str


PLAIN = Peer("plain loop", plain, "torch")
PEERS = (
    PLAIN,
    Peer("Lightning, transfer learning as documented", lightning_transfer, "lightning"),
    Peer("Lightning, BackboneFinetuning", lightning_backbone, "lightning"),
    Peer("fastai, freeze and fit, train_bn=False", fastai_without_bn, "fastai"),
    Peer("fastai, freeze and fit", fastai, "fastai"),
)


def installed() -> tuple[Peer, ...]:
    """Those whose package is there."""
    return tuple(peer for peer in PEERS if importlib.util.find_spec(peer.package) is not None)
