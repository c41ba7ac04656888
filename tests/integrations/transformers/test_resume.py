"""A Trainer that goes on from a checkpoint: the schedule too, and what was held is compared with what was loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

import frostline as fl
from frostline.errors import FrozenStateMoved, ModelError
from frostline.integrations.transformers import Freeze
from frostline.optim import Epoch, Plateau, Stage, Step, Unfreeze

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*mtime.*")]

SCHEDULE = Unfreeze((Stage(("resnet.encoder",), Epoch(1)), Stage(("resnet.embedder.embedder.normalization",), Step(9))))
WHOLE = {"save_strategy": "steps", "save_steps": 1}


def freeze(schedule: Unfreeze | None = SCHEDULE) -> Freeze:
    return Freeze("resnet", schedule=schedule)


@pytest.fixture
def whole(resnet, images, trainer_of, tmp_path) -> tuple[torch.nn.Module, Path]:
    """A model that was trained without a break, and the folder of its checkpoints."""
    model = resnet()
    callback = freeze()
    trainer_of(model, images, callback, **WHOLE).train()
    assert [(each.epoch, each.step) for each in callback.report.unfrozen] == [(1, 4), (2, 9)]
    return model, tmp_path / "out"


# In the middle of an epoch; the last step of one, whose end the Trainer does not come back to; and of the next.
@pytest.mark.parametrize("step", [2, 4, 8])
def test_it_ends_where_a_run_without_a_break_ends(whole, resnet, images, trainer_of, tmp_path, step: int):
    expected, checkpoints = whole
    model = resnet(seed=1)  # other weights: all of them come from the checkpoint
    callback = freeze()
    # Arguments that save nothing are others than those of the checkpoint, of which the Trainer warns.
    trainer = trainer_of(model, images, callback, **WHOLE, output_dir=str(tmp_path / "again"))
    trainer.train(resume_from_checkpoint=str(checkpoints / f"checkpoint-{step}"))
    assert not fl.snapshot(expected).diff(fl.snapshot(model))
    assert [(each.epoch, each.step) for each in callback.report.unfrozen] == [(1, 4), (2, 9)]
    assert not callback.report.moved
    assert "resnet.embedder.embedder.convolution.weight" in callback.report.held


def test_without_its_state_a_schedule_would_begin_anew(whole, resnet, images, trainer_of, tmp_path, said):
    """The failing twin: what a callback does that keeps nothing; it is said."""
    expected, checkpoints = whole
    state = checkpoints / "checkpoint-8" / "trainer_state.json"
    written = json.loads(state.read_text())
    for key in [key for key in written["stateful_callbacks"] if "Freeze" in key]:
        del written["stateful_callbacks"][key]
    state.write_text(json.dumps(written))
    model = resnet()
    model.load_state_dict(safetensors.torch.load_file(checkpoints / "checkpoint-8" / "model.safetensors"))
    trainer = trainer_of(model, images, freeze(), **WHOLE, output_dir=str(tmp_path / "again"))
    trainer.train(resume_from_checkpoint=str(checkpoints / "checkpoint-8"))
    assert fl.snapshot(expected).diff(fl.snapshot(model))
    assert any("no state of it" in line for line in said)


@pytest.mark.parametrize("entry", ["convolution.weight", "normalization.running_mean"])
def test_a_checkpoint_whose_held_values_were_changed_is_refused(
    whole, resnet, images, trainer_of, tmp_path, entry: str
):
    _, checkpoints = whole
    path = checkpoints / "checkpoint-4" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights[f"resnet.embedder.embedder.{entry}"] += 1
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    model = resnet()
    trainer = trainer_of(model, images, freeze(), **WHOLE, output_dir=str(tmp_path / "again"))
    with pytest.raises(FrozenStateMoved, match=rf"1 of \d+ held entries .* checkpoint's run held: .*{entry}") as caught:
        trainer.train(resume_from_checkpoint=str(path.parent))
    assert [row.path for row in caught.value.diff.moved] == [f"resnet.embedder.embedder.{entry}"]
    assert all(p.requires_grad for p in model.parameters())


def test_a_checkpoint_of_a_run_without_a_freeze(resnet, images, trainer_of, tmp_path):
    """It has nothing to say of what was held; what the model was when the Trainer was made is what it has to be."""

    def all_of(model: torch.nn.Module) -> dict:
        # The Trainer's own leaves out what is held, and torch refuses the state of an optimizer of another size.
        return {"optimizers": (torch.optim.AdamW(model.parameters(), lr=1e-2), None)}

    model = resnet()
    trainer_of(model, images, **WHOLE, **all_of(model)).train()
    checkpoint = tmp_path / "out" / "checkpoint-4"
    settings = {**WHOLE, "output_dir": str(tmp_path / "again")}
    model = resnet()
    trainer = trainer_of(model, images, Freeze("resnet"), **settings, **all_of(model))
    with pytest.raises(FrozenStateMoved, match=r"resnet\.embedder"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    model = resnet()
    model.load_state_dict(safetensors.torch.load_file(checkpoint / "model.safetensors"))
    callback = Freeze("resnet")
    trainer = trainer_of(model, images, callback, **settings, **all_of(model))
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert not callback.report.moved


def test_another_schedule_is_refused(whole, resnet, images, trainer_of, tmp_path):
    _, checkpoints = whole
    other = freeze(Unfreeze((Stage(("resnet.encoder",), Epoch(2)), SCHEDULE.stages[1])))
    trainer = trainer_of(resnet(), images, other, **WHOLE, output_dir=str(tmp_path / "again"))
    with pytest.raises(ModelError, match="of another schedule"):
        trainer.train(resume_from_checkpoint=str(checkpoints / "checkpoint-2"))


def test_the_trainer_may_restore_its_own_callbacks(resnet, images, trainer_of, tmp_path):
    """It makes those anew from JSON, which a callback with a model's modules and a schedule cannot be."""
    settings = {
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "metric_for_best_model": "loss",
        "restore_callback_states_from_checkpoint": True,
    }
    expected = resnet()
    trainer_of(expected, images, freeze(), EarlyStoppingCallback(9), **settings).train()
    model = resnet(seed=1)
    callback = freeze()
    trainer = trainer_of(
        model, images, callback, EarlyStoppingCallback(9), **settings, output_dir=str(tmp_path / "again")
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert not fl.snapshot(expected).diff(fl.snapshot(model))
    assert [(each.epoch, each.step) for each in callback.report.unfrozen] == [(1, 4), (2, 9)]


def test_a_plateau_goes_on_counting(resnet, images, trainer_of, tmp_path):
    never_better = Plateau(2, mode="min", min_delta=100.0)
    schedule = Unfreeze((Stage(("resnet.encoder",), never_better),))
    settings = {"save_strategy": "epoch", "eval_strategy": "epoch", "num_train_epochs": 4}
    first = Freeze(schedule=schedule, monitor="loss")
    trainer_of(resnet(), images, first, **settings).train()
    second = Freeze(schedule=schedule, monitor="loss")
    trainer = trainer_of(resnet(seed=1), images, second, **settings, output_dir=str(tmp_path / "again"))
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))
    assert first.report.unfrozen == second.report.unfrozen
    assert [each.epoch for each in second.report.unfrozen] == [3]


def test_two_freezes_each_have_their_own_state(resnet, images, trainer_of, tmp_path):
    def both() -> list[TrainerCallback]:
        stages = [Unfreeze((Stage((part,), Epoch(2)),)) for part in ("resnet.embedder", "resnet.encoder")]
        return [Freeze("resnet.embedder", schedule=stages[0]), Freeze("resnet.encoder", schedule=stages[1])]

    expected = resnet()
    trainer_of(expected, images, *both(), **WHOLE).train()
    model, again = resnet(seed=1), both()
    trainer = trainer_of(model, images, *again, **WHOLE, output_dir=str(tmp_path / "again"))
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-9"))
    assert not fl.snapshot(expected).diff(fl.snapshot(model))
    assert [each.report.unfrozen[0].epoch for each in again] == [2, 2]


def test_the_best_model_is_loaded_before_the_end(resnet, images, trainer_of, tmp_path):
    settings = {"save_strategy": "epoch", "eval_strategy": "epoch", "save_total_limit": 1}
    callback = Freeze("resnet.embedder", report=True)
    trainer_of(resnet(), images, callback, load_best_model_at_end=True, **settings).train()
    assert not callback.report.moved
    assert not json.loads((tmp_path / "out" / "freeze.json").read_text())["moved"]
