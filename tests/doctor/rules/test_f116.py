"""F116: Lightning's switch for batch norms."""

from __future__ import annotations

import warnings

import pytest
import torch
from planted_loops import f116, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F116 error: BackboneFinetuning left 1 batch norm of the backbone trainable, although train_bn=False was given
  seen: lightning froze 4 parameters, and set requires_grad=True in 1 batch norm
        train_bn=False was asked for at benchmarks/planted_loops/f116.py:{line}; freeze_before_training does not \
pass it on
        backbone.1.weight, backbone.1.bias changed in 4 steps
        backbone.1.running_mean: moved in 4 steps
  at:   benchmarks/planted_loops/f116.py:{line}  callback = BackboneFinetuning(unfreeze_backbone_at_epoch=10, \
train_bn=False)  # <- F116
  fix:  frostline.freeze(model, "backbone")
        or override freeze_before_training: self.freeze(pl_module.backbone, train_bn=self.train_bn)"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f116.failing())
    assert [f.code for f in found] == ["F116"]
    line = marked_line(f116.failing, "F116")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)
    assert set(found[0].paths) == {
        f"backbone.1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f116.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "6 frozen parameters kept their bytes" in found.sound


def test_the_default_is_said_as_information_and_explains_the_statistics():
    found = examine(f116.default())
    assert [(f.code, f.severity) for f in found] == [("F116", Severity.INFO)]
    assert found[0].message.endswith("left 1 batch norm of the backbone trainable: train_bn is True by default")


@pytest.mark.slow
def test_the_real_trainer(tmp_path):
    BackboneFinetuning = f116.callback_of_lightning()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.backbone, self.head = f116.Net().backbone, nn.Linear(8, 3)

            def training_step(self, batch, index):
                x, y = batch
                return nn.functional.cross_entropy(self.head(self.backbone(x)), y)

            def configure_optimizers(self):
                return torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()), lr=0.01)

        torch.manual_seed(0)
        data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randint(3, (64,)))
        with fl.watch() as seen:
            module = Module()
            trainer = lightning.Trainer(
                max_epochs=1,
                callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=10, train_bn=False)],
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=tmp_path,
            )
            trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=16))
    found = [f for f in examine(seen) if f.severity is not Severity.INFO]
    assert [f.code for f in found] == ["F116"]
    assert "train_bn=False" in found[0].source
    assert {p for p in found[0].paths if "running" not in p} == {
        "backbone.1.weight", "backbone.1.bias", "backbone.1.num_batches_tracked",
    }  # fmt: skip
