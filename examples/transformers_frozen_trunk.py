"""A Trainer that was told to freeze: by hand its batch norms go on learning; with the callback nothing moves."""

import tempfile
import warnings

with warnings.catch_warnings():  # a CPU build of torch beside another build of torchvision
    warnings.simplefilter("ignore")
    from frostline.compat import import_torchvision

    import_torchvision()
import torch
from sklearn.datasets import load_digits
from transformers import PrinterCallback, ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments
from transformers.utils import logging

import frostline as fl
from frostline.integrations.transformers import Doctor, Freeze
from frostline.optim import Epoch, Stage, Unfreeze

logging.set_verbosity_error()
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
rows = [{"pixel_values": x, "labels": int(y)} for x, y in zip(images, digits.target, strict=True)]
first = [row for row in rows[:900] if row["labels"] < 5]
second = [{**row, "labels": row["labels"] - 5} for row in rows[:900] if row["labels"] >= 5]
held_out = [{**row, "labels": row["labels"] - 5} for row in rows[900:] if row["labels"] >= 5]


def model_of(trunk=None):
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 32], depths=[1, 1], layer_type="basic", num_labels=5
    )
    model = ResNetForImageClassification(config)
    if trunk is not None:
        model.resnet.load_state_dict(trunk)
    return model


def trained(model, data, epochs, *callbacks):
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=1e-2, use_cpu=True,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, settings, train_dataset=data, callbacks=list(callbacks))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model


@torch.no_grad()
def accuracy(model):
    answers = model.eval()(torch.stack([row["pixel_values"] for row in held_out])).logits.argmax(1)
    return float((answers == torch.tensor([row["labels"] for row in held_out])).float().mean())


trunk = {key: value.clone() for key, value in trained(model_of(), first, 4).resnet.state_dict().items()}

print("The mistake: requires_grad_(False) and eval(), then a Trainer, which calls train() at every step")
model, doctor = model_of(trunk), Doctor(steps=10)
model.resnet.requires_grad_(False).eval()
before = fl.snapshot(model, "resnet", values=True)
trained(model, second, 4, doctor)
diff = before.diff(model)
moved = [row for row in diff.moved if row.path.endswith("running_var")]
print(f"  running variances of {len(moved)} layers moved, by up to {max(row.max_abs for row in moved):.3g}")
print(f"  the doctor, on the first 10 steps: {doctor.examination[0].code} {doctor.examination[0].message}")

print("\nWith callbacks=[Freeze('resnet')]")
freeze, doctor = Freeze("resnet"), Doctor(steps=10)
model = trained(model_of(trunk), second, 4, freeze, doctor)
print(f"  {freeze.report}\n  the doctor finds {len(doctor.examination)}; accuracy {accuracy(model):.1%}")

print("\nWith a schedule: the last stage trains after 2 epochs, the rest never")
freeze = Freeze("resnet", schedule=Unfreeze((Stage(("resnet.encoder.stages.1",), Epoch(2)),)))
model = trained(model_of(trunk), second, 4, freeze)
print("  " + str(freeze.report).replace("\n", "\n  ") + f"\n  accuracy {accuracy(model):.1%}")
