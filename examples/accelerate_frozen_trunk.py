"""A loop with accelerate: its checkpoints carry a schedule, and prove that what is frozen is what it was."""

import tempfile
from pathlib import Path

import safetensors.torch
import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl
from frostline.integrations.accelerate import register_for_checkpointing
from frostline.optim import Epoch, Stage, Unfreeze, Unfreezing

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
data = TensorDataset(images[:1200], torch.tensor(digits.target[:1200]))
SCHEDULE = Unfreeze((Stage(("last",), Epoch(2)),))


def block(channels, to):
    return nn.Sequential(nn.Conv2d(channels, to, 3, padding=1), nn.BatchNorm2d(to), nn.ReLU(), nn.MaxPool2d(2))


def start(register=True):
    """A model with a trunk, as each start of a script makes it; the trunk is held, its last block for two epochs."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    accelerator.free_memory()
    model = nn.Sequential()
    for name, part in {"first": block(1, 16), "last": block(16, 32), "flat": nn.Flatten()}.items():
        model.add_module(name, part)
    model.add_module("head", nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    hold = fl.freeze(model, "first", optimizer=optimizer)
    unfreezing = Unfreezing(SCHEDULE, model, optimizer)
    ready = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=64))
    if register:
        register_for_checkpointing(accelerator, hold, unfreezing)
    return accelerator, model, ready, hold, unfreezing


def epoch(accelerator, model, ready, unfreezing):
    _, optimizer, loader = ready
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(ready[0](x), y))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return unfreezing.epoch_end()


for register in (False, True):
    print("With register_for_checkpointing(accelerator, hold, unfreezing)" if register else "The mistake: save_state()")
    with tempfile.TemporaryDirectory() as folder:
        accelerator, model, ready, hold, unfreezing = start(register)
        told = [epoch(accelerator, model, ready, unfreezing) for _ in range(2)]
        print(f"  begins to train after epoch 2: {told[1]}; the hold: {hold.verify()}")
        accelerator.save_state(folder)
        accelerator, model, ready, hold, unfreezing = start(register)
        accelerator.load_state(folder)
        trains = model.last[0].weight.requires_grad
        print(f"  after load_state in a new start, the last block {'trains' if trains else 'is frozen again'}")
        file = Path(folder, "model.safetensors")
        weights = safetensors.torch.load_file(file)
        weights["first.1.running_mean"] += 0.1
        safetensors.torch.save_file(weights, file, {"format": "pt"})
        try:
            accelerator.load_state(folder)
            print("  a checkpoint whose frozen part was changed is loaded without a word\n")
        except fl.errors.FrozenStateMoved as error:
            print(f"  {str(error).splitlines()[0]}")
