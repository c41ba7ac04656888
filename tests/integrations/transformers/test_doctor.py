"""The doctor in the Trainer: what is wrong is found on the user's line, and the Trainer's own ways are no mistakes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

import frostline as fl
from frostline.audit import Contract
from frostline.errors import FindingsFound, ModelError
from frostline.integrations.transformers import Doctor, Freeze
from frostline.optim import Stage, Step, Unfreeze

pytestmark = pytest.mark.slow


def taps_are_off() -> bool:
    return "frostline" not in nn.Module.train.__code__.co_filename


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_grad_norm": 0.1},
        {"bf16": True, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "cosine", "warmup_steps": 3},
        {"optim": "adafactor", "label_smoothing_factor": 0.1},
    ],
    ids=lambda settings: next(iter(settings), "plain"),
)
@pytest.mark.parametrize("model", ["bert", "resnet"])
@pytest.mark.filterwarnings("ignore:.*mtime.*")
def test_a_right_run_is_right(model, settings, trainer_of, request):
    build, data = (
        request.getfixturevalue(model),
        request.getfixturevalue("images" if model == "resnet" else "sentences"),
    )
    doctor = Doctor(steps=5)
    trainer_of(build(), data, Freeze(f"{model}.*", f"!{model}.pooler*"), doctor, **settings).train()
    assert doctor.examination is not None
    assert [finding.code for finding in doctor.examination] == [], str(doctor.examination)
    assert len(doctor.examination.seen.steps) == 5
    assert taps_are_off()


def test_a_schedule_is_no_mistake(resnet, images, trainer_of):
    doctor = Doctor(steps=8)
    schedule = Unfreeze((Stage(("resnet.encoder",), Step(3)),))
    trainer_of(resnet(), images, Freeze("resnet", schedule=schedule), doctor).train()
    assert [finding.code for finding in doctor.examination] == [], str(doctor.examination)


def test_the_statistics_of_what_was_frozen_by_hand(resnet, images, trainer_of, said, tmp_path):
    model = resnet()
    model.resnet.requires_grad_(False)
    doctor = Doctor(steps=4, report=True)
    trainer = trainer_of(model, images, doctor)
    line = inspect.currentframe().f_lineno + 1
    trainer.train()
    (finding,) = doctor.examination
    assert finding.code == "F107"
    # The line that the user wrote, not one of the Trainer's.
    assert (Path(finding.file).name, finding.line) == ("test_doctor.py", line)
    assert [text for text in said if "F107" in text and "right:" not in text]
    written = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert [each["code"] for each in written["findings"]] == ["F107"]


def test_a_misspelt_flag(bert, sentences, trainer_of):
    model = bert()
    model.bert.embeddings.word_embeddings.weight.require_grad = False
    doctor = Doctor(steps=2)
    trainer_of(model, sentences, doctor).train()
    assert [finding.code for finding in doctor.examination] == ["F101"]


def test_an_optimizer_that_lacks_the_head(resnet, images, trainer_of):
    model = resnet()
    doctor = Doctor(steps=4)
    optimizer = torch.optim.SGD(model.resnet.parameters(), lr=0.01)
    trainer_of(model, images, doctor, optimizers=(optimizer, None)).train()
    assert any(finding.code.startswith("O4") for finding in doctor.examination), str(doctor.examination)


def test_what_a_contract_says_must_stay(resnet, images, trainer_of):
    doctor = Doctor(steps=4, contract=Contract(frozen=("resnet.embedder",)))
    trainer_of(resnet(), images, doctor).train()
    assert any("resnet.embedder" in str(finding) for finding in doctor.examination)


def test_results_are_equal_to_the_bit(bert, sentences, trainer_of):
    watched, alone = bert(), bert()
    trainer_of(watched, sentences, Doctor(steps=6)).train()
    trainer_of(alone, sentences).train()
    assert not fl.snapshot(watched).diff(fl.snapshot(alone))


def test_it_ends_a_run_that_it_is_told_to_end(resnet, images, trainer_of):
    model = resnet()
    model.resnet.requires_grad_(False)
    trainer = trainer_of(model, images, Doctor(steps=3, fail_on="error"))
    with pytest.raises(FindingsFound, match=r"1 mistakes in 3 steps\n.*F107"):
        trainer.train()
    assert trainer.state.global_step == 3
    assert taps_are_off()


def test_a_run_that_is_shorter_than_its_steps(bert, sentences, trainer_of):
    doctor = Doctor(steps=100)
    trainer_of(bert(), sentences, doctor, num_train_epochs=1).train()
    assert len(doctor.examination.seen.steps) == 4
    assert taps_are_off()


def test_a_crash_takes_the_watch_off_within_a_with_block(bert, sentences, trainer_of):
    class Crashes(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise OSError("the disk is gone")

    doctor = Doctor(steps=5)
    trainer = trainer_of(bert(), sentences, Crashes(), doctor)
    with pytest.raises(OSError, match="the disk is gone"), doctor:
        trainer.train()
    assert taps_are_off()
    assert doctor.examination.seen.ended == "crashed"


def test_without_the_block_it_stays_on_until_it_is_closed(bert, sentences, trainer_of):
    class Crashes(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise OSError("the disk is gone")

    doctor = Doctor(steps=5)
    trainer = trainer_of(bert(), sentences, Crashes(), doctor)
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.train()
    assert not taps_are_off()
    doctor.close()
    assert taps_are_off()


def test_no_steps():
    with pytest.raises(ModelError, match="steps=0"):
        Doctor(steps=0)
