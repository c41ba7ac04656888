"""Lightning: a second head on a trained trunk. BackboneFinetuning freezes parameters, and the first head gets worse."""

import logging
import warnings

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl
from frostline.optim import Epoch, Stage, Unfreeze

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from frostline.integrations.lightning import Doctor, Freeze

    # isort: split
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import BackboneFinetuning

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")  # workers of loaders, held modules in eval mode

digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
# The second head learns from another scanner: dark ink on white paper.
first, second = TensorDataset(images[:1300], labels[:1300]), TensorDataset(1 - images[:1300], labels[:1300])


class Digits(LightningModule):
    def __init__(self, head_only=False):
        super().__init__()
        self.head_only = head_only
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(128, 10)

    def training_step(self, batch, _index):
        return cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self):
        # BackboneFinetuning adds what it unfreezes; with Freeze nothing is added later.
        return torch.optim.AdamW((self.head if self.head_only else self).parameters(), lr=3e-3)


def fit(model, data, *callbacks, epochs=3):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), max_epochs=epochs, **dict.fromkeys(quiet, False))
    trainer.fit(model, DataLoader(data, 64, shuffle=True))


def compare(title, model, *callbacks):
    model.load_state_dict(trained.state_dict())
    model.head.reset_parameters()
    before = fl.snapshot(model, "backbone", values=True)
    fit(model, second, *callbacks)
    with torch.no_grad():
        right = trained.head(model.eval().backbone(images[1300:])).argmax(1) == labels[1300:]
    moved = [row.path for row in before.diff(model).moved if row.kind in {"parameter", "buffer"}]
    print(f"\n{title}: the first head is right in {right.double().mean():.2%}")
    print(f"  moved in the backbone: {len(moved)} tensors", *moved[:7], sep="\n    ")


torch.manual_seed(0)
trained = Digits()
fit(trained, first)
doctor, freeze = Doctor(steps=20), Freeze("backbone")
compare("BackboneFinetuning(99)", Digits(head_only=True), BackboneFinetuning(99), doctor)
print(f"  {str(doctor.examination).splitlines()[1]}")
compare("Freeze('backbone')", Digits(), freeze)
print(f"  {freeze.report}")
later = Freeze("backbone.[01]", schedule=Unfreeze((Stage(("backbone.[45]",), Epoch(2)),)))
compare("Freeze, and the second block trains from epoch 2 on", Digits(), later)
print("  " + str(later.report).replace("\n", "\n  "))
