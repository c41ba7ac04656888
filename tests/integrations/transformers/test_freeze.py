"""A freeze in the Trainer: it calls `model.train()` at each step, and what is held withstands."""

from __future__ import annotations

import functools
import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

import frostline as fl
from frostline.errors import CannotFreeze, CannotThaw, FrozenStateMoved, ModelError, NothingSelected
from frostline.integrations.transformers import Freeze
from frostline.optim import Epoch, Plateau, Stage, Step, Unfreeze, gradual

pytestmark = pytest.mark.slow

TRUNK = ("resnet.embedder", "resnet.encoder.stages.0")


class At(TrainerCallback):
    """Does something at one event of the Trainer."""

    def __init__(self, event: str, do) -> None:
        setattr(self, event, lambda args, state, control, **kwargs: do(state, control, kwargs))


def moved(before: fl.state.Snapshot, model: nn.Module) -> set[str]:
    return {change.path for change in before.diff(model).moved}


def test_a_trunk_is_held_to_the_bit_and_comes_back(resnet, images, trainer_of, tmp_path):
    model = resnet()
    model.resnet.embedder.embedder.convolution.weight.requires_grad_(False)
    before = fl.snapshot(model)
    freeze = Freeze(*TRUNK, report=True)
    modes: set[bool] = set()
    norm = model.resnet.embedder.embedder.normalization
    watch = At("on_step_end", lambda *_: modes.add(norm.training))
    trainer = trainer_of(model, images, freeze, watch)
    trainer.train()
    assert modes == {False}
    now = moved(before, model)
    assert {path for path in now if path.startswith(TRUNK)} == set()
    assert "classifier.1.weight" in now
    assert "resnet.encoder.stages.1.layers.0.layer.0.normalization.running_mean" in now
    assert norm.training
    assert [norm.weight.requires_grad, model.resnet.embedder.embedder.convolution.weight.requires_grad] == [True, False]
    assert freeze.report is not None
    assert not freeze.report.moved
    assert freeze.held == []
    written = json.loads((tmp_path / "out" / "freeze.json").read_text())
    assert written == freeze.report.to_json()
    assert "resnet.embedder.embedder.normalization.running_var" in written["held"]
    # The Trainer makes its optimizer of what requires gradients: what lasts is left out.
    assert len([p for group in trainer.optimizer.param_groups for p in group["params"]]) == 11


def test_by_hand_the_statistics_move(resnet, images, trainer_of):
    """The failing twin."""
    model = resnet()
    for part in (model.resnet.embedder, model.resnet.encoder.stages[0]):
        part.requires_grad_(False).eval()
    before = fl.snapshot(model)
    trainer_of(model, images).train()
    assert "resnet.embedder.embedder.normalization.running_mean" in moved(before, model)


@pytest.mark.parametrize(("held", "off"), [(True, True), (False, False)])
def test_dropout_of_a_held_part_is_off_and_by_hand_it_is_on(bert, sentences, trainer_of, held: bool, off: bool):
    model = bert()
    outputs: list[torch.Tensor] = []
    callbacks = [Freeze("bert")] if held else []
    if not held:
        model.bert.requires_grad_(False).eval()
    model.bert.register_forward_hook(lambda module, args, out: outputs.append(out[0].detach()))
    data = type(sentences)([sentences[0]] * 32)
    trainer_of(model, data, *callbacks, num_train_epochs=1).train()
    assert all(torch.equal(outputs[0], other) for other in outputs) == off


def test_a_part_that_trains_does_so_as_if_frozen_by_hand_in_eval_mode(resnet, images, trainer_of):
    class KeepsEval(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            # The mode is set again within the step, so that train() has to be replaced.
            model.resnet.train = lambda mode=True: model.resnet

    ours, hand = resnet(), resnet()
    trainer_of(ours, images, Freeze("resnet")).train()
    hand.resnet.requires_grad_(False).eval()
    trainer_of(hand, images, KeepsEval()).train()
    del hand.resnet.train
    assert not fl.snapshot(hand, "classifier").diff(fl.snapshot(ours, "classifier"))
    assert fl.snapshot(resnet(), "classifier").diff(fl.snapshot(ours, "classifier"))


class TestSchedule:
    def test_with_the_trainers_own_optimizer(self, resnet, images, trainer_of):
        model = resnet()
        schedule = Unfreeze((Stage(("resnet.encoder",), Epoch(1)), Stage(("resnet.embedder",), Step(10))))
        freeze = Freeze("resnet", schedule=schedule)
        flags: list[tuple[bool, bool]] = []
        parts = [model.resnet.encoder, model.resnet.embedder]
        watch = At("on_step_begin", lambda *_: flags.append(tuple(next(p.parameters()).requires_grad for p in parts)))
        before = fl.snapshot(model)
        trainer_of(model, images, freeze, watch).train()
        assert flags == [(False, False)] * 4 + [(True, False)] * 6 + [(True, True)] * 2
        assert [(each.epoch, each.step, each.parts) for each in freeze.report.unfrozen] == [
            (1, 4, ("resnet.encoder",)),
            (2, 10, ("resnet.embedder",)),
        ]
        assert "resnet.embedder.embedder.normalization.running_mean" in moved(before, model)

    def test_made_of_the_model(self, resnet, images, trainer_of):
        freeze = Freeze(schedule=lambda model: gradual(model, every=Epoch(1), head="classifier"))
        trainer_of(resnet(), images, freeze).train()
        assert [each.epoch for each in freeze.report.unfrozen] == [1, 2, 3]

    @pytest.mark.parametrize("monitor", ["eval_loss", "loss"])
    def test_by_a_plateau_of_the_evaluation(self, resnet, images, trainer_of, monitor: str):
        never_better = Plateau(1, mode="min", min_delta=100.0)
        schedule = Unfreeze((Stage(("resnet.encoder",), never_better), Stage(("resnet.embedder",), never_better)))
        freeze = Freeze(schedule=schedule, monitor=monitor)
        trainer_of(resnet(), images, freeze, eval_strategy="epoch").train()
        # The first epoch is always better than nothing; counted anew after the first part.
        assert [(each.epoch, each.parts) for each in freeze.report.unfrozen] == [(2, ("resnet.encoder",))]

    def test_by_a_plateau_of_evaluations_between_epochs(self, resnet, images, trainer_of):
        schedule = Unfreeze((Stage(("resnet",), Plateau(1, mode="min", min_delta=100.0)),))
        freeze = Freeze(schedule=schedule)
        settings = {"metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 3}
        trainer_of(resnet(), images, freeze, **settings).train()
        assert [each.epoch for each in freeze.report.unfrozen] == [2]

    def test_a_plateau_without_a_metric_is_an_error(self, resnet, images, trainer_of):
        schedule = Unfreeze((Stage(("resnet",), Plateau(1)),))
        model = resnet()
        with pytest.raises(ModelError, match="no metric was named"):
            trainer_of(model, images, Freeze(schedule=schedule)).train()
        with pytest.raises(ModelError, match=r"no such metric in epoch 1\n  found: .*eval_loss"):
            freeze = Freeze(schedule=schedule, monitor="accuracy")
            with freeze:
                trainer_of(model, images, freeze, eval_strategy="epoch").train()
        assert all(p.requires_grad for p in model.parameters())

    def test_a_warm_up_needs_groups_of_its_own(self, resnet, images, trainer_of):
        schedule = Unfreeze((Stage(("resnet.encoder",), Epoch(1), warmup=4),))
        model = resnet()
        with pytest.raises(ModelError, match=r"in a Trainer: Trainer\(\.\.\., optimizers=\(torch"):
            trainer_of(model, images, Freeze(schedule=schedule)).train()
        assert all(p.requires_grad for p in model.parameters())
        groups = fl.param_groups(model, 1e-2, layer_decay=1.0)
        freeze = Freeze(schedule=schedule)
        trainer_of(model, images, freeze, optimizers=(torch.optim.AdamW(groups), None)).train()
        assert [each.epoch for each in freeze.report.unfrozen] == [1]

    def test_several_processes_are_refused_when_the_trainer_is_made(self, resnet, images, trainer_of, monkeypatch):
        from transformers import TrainingArguments

        monkeypatch.setattr(TrainingArguments, "world_size", 2)
        model = resnet()
        with pytest.raises(CannotThaw, match=r"one wrapper over all of 2 processes.*\n  fix: .*rewrap"):
            trainer_of(model, images, Freeze(schedule=Unfreeze((Stage(("resnet",), Epoch(1)),))))
        assert all(p.requires_grad for p in model.parameters())


class TestLate:
    """Added after the Trainer was made."""

    def test_it_says_what_the_optimizer_has_and_holds(self, resnet, images, trainer_of, said):
        model = resnet()
        before = fl.snapshot(model)
        trainer = trainer_of(model, images)
        freeze = Freeze(*TRUNK)
        trainer.add_callback(freeze)
        trainer.train()
        assert not {path for path in moved(before, model) if path.startswith(TRUNK)}
        assert [line for line in said if "has 9 parameters that are held now: resnet.embedder" in line]
        assert not freeze.report.moved

    def test_several_processes_are_refused(self, resnet, images, trainer_of, monkeypatch):
        from transformers import TrainingArguments

        model = resnet()
        trainer = trainer_of(model, images)
        trainer.add_callback(Freeze("resnet"))
        monkeypatch.setattr(TrainingArguments, "world_size", 2)
        trainer.accelerator.prepare = lambda *things: things
        with pytest.raises(CannotFreeze, match=r"wrapped for 2 processes by now.*\n  fix: Trainer\("):
            trainer.train()
        assert all(p.requires_grad for p in model.parameters())

    def test_a_model_that_is_made_for_each_run(self, resnet, images, trainer_of):
        freeze = Freeze(*TRUNK)
        trainer = trainer_of(None, images, freeze, model_init=functools.partial(resnet, 0))
        trainer.train()
        assert "resnet.embedder.embedder.normalization.running_mean" in freeze.report.held
        assert not freeze.report.moved
        assert not {p for p in moved(fl.snapshot(resnet()), trainer.model) if p.startswith(TRUNK)}


class TestAgain:
    def test_a_second_run_of_the_same_trainer(self, resnet, images, trainer_of):
        model = resnet()
        before = fl.snapshot(model)
        freeze = Freeze(*TRUNK)
        trainer = trainer_of(model, images, freeze, num_train_epochs=1)
        trainer.train()
        trainer.train()
        assert not freeze.report.moved
        assert not {path for path in moved(before, model) if path.startswith(TRUNK)}

    def test_after_an_error_it_is_held_until_it_is_released(self, resnet, images, trainer_of):
        def fail(state, control, kwargs) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

        model = resnet()
        freeze = Freeze(*TRUNK, schedule=Unfreeze((Stage(("resnet.encoder.stages.1",), Step(1)),)))
        stop = At("on_step_end", fail)
        trainer = trainer_of(model, images, freeze, stop)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert freeze.held
        assert freeze.report is None
        trainer.remove_callback(stop)
        trainer.train()
        assert not freeze.report.moved
        assert all(p.requires_grad for p in model.parameters())

        trainer.add_callback(stop)
        with pytest.raises(KeyboardInterrupt), freeze:
            trainer.train()
        assert freeze.held == []
        assert all(p.requires_grad for p in model.parameters())
        assert model.train().resnet.embedder.embedder.normalization.training

    def test_the_callback_does_not_keep_the_model(self, resnet):
        from transformers import TrainerControl, TrainerState, TrainingArguments

        model = resnet()
        freeze = Freeze("resnet")
        freeze.on_init_end(TrainingArguments(use_cpu=True, report_to=[]), TrainerState(), TrainerControl(), model=model)
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None
        assert freeze.held == []


class TestVerify:
    @staticmethod
    def spoil(state, control, kwargs) -> None:
        if state.global_step == 2:
            with torch.no_grad():
                kwargs["model"].resnet.embedder.embedder.convolution.weight.add_(1)

    @pytest.mark.parametrize(("verify", "steps"), [("epoch", 4), ("end", 12)])
    def test_what_moves_ends_the_run(self, resnet, images, trainer_of, verify: str, steps: int):
        trainer = trainer_of(resnet(), images, Freeze(*TRUNK, verify=verify), At("on_step_end", self.spoil))
        with pytest.raises(FrozenStateMoved, match=r"embedder\.convolution\.weight"):
            trainer.train()
        assert trainer.state.global_step == steps

    def test_or_is_in_the_report_only(self, resnet, images, trainer_of):
        freeze = Freeze(*TRUNK, verify="never")
        trainer_of(resnet(), images, freeze, At("on_step_end", self.spoil)).train()
        assert freeze.report.moved == ("resnet.embedder.embedder.convolution.weight",)

    def test_at_the_end_it_is_reported_and_released_all_the_same(self, resnet, images, trainer_of, tmp_path: Path):
        model = resnet()
        freeze = Freeze(*TRUNK, verify="end", report=tmp_path / "here.json")
        with pytest.raises(FrozenStateMoved):
            trainer_of(model, images, freeze, At("on_step_end", self.spoil)).train()
        assert json.loads((tmp_path / "here.json").read_text())["moved"]
        assert all(p.requires_grad for p in model.parameters())

    def test_no_such_choice(self):
        with pytest.raises(CannotFreeze, match="'sometimes'"):
            Freeze("resnet", verify="sometimes")


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2},
        {"bf16": True},
        {"max_grad_norm": 0.0, "optim": "sgd"},
        {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1,
         "load_best_model_at_end": True},
        {"auto_find_batch_size": True},
    ],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*mtime.*")
def test_settings_of_the_trainer(resnet, images, trainer_of, settings):
    model = resnet()
    before = fl.snapshot(model)
    freeze = Freeze(*TRUNK)
    trainer_of(model, images, freeze, **settings, num_train_epochs=2).train()
    assert not freeze.report.moved
    now = moved(before, model)
    assert "classifier.1.weight" in now
    assert not {path for path in now if path.startswith(TRUNK)}


class TestActivationCheckpointing:
    @staticmethod
    def settings(*, reentrant: bool) -> dict:
        from transformers import TrainingArguments

        new = hasattr(TrainingArguments, "activation_checkpointing")
        name = "activation_checkpointing" if new else "gradient_checkpointing"
        return {name: True, f"{name}_kwargs": {"use_reentrant": reentrant}, "num_train_epochs": 1}

    def test_behind_held_embeddings_the_layers_train(self, vit, images, trainer_of, said):
        plain, model = vit(), vit()
        trainer_of(plain, images, Freeze("vit.embeddings"), num_train_epochs=1).train()
        trainer_of(model, images, Freeze("vit.embeddings"), **self.settings(reentrant=False)).train()
        assert not fl.snapshot(plain).diff(fl.snapshot(model))
        assert any("vit.layers.0" in path for path in moved(fl.snapshot(vit()), model))
        assert not said

    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
    def test_reentrant_ones_do_not_and_that_is_said(self, vit, images, trainer_of, said):
        """The failing twin."""
        model = vit()
        trainer_of(model, images, Freeze("vit.embeddings"), **self.settings(reentrant=True)).train()
        assert not any("vit.layers.0" in path for path in moved(fl.snapshot(vit()), model))
        assert [line for line in said if "32 parameters" in line and "use_reentrant=False" in line]


@pytest.mark.parametrize("given", [("nothing",), ("resnet", "nothing")])
def test_what_the_model_does_not_have(resnet, images, trainer_of, given):
    model = resnet()
    before = fl.snapshot(model)
    with pytest.raises(NothingSelected, match="nothing"):
        trainer_of(model, images, Freeze(*given))
    assert not before.diff(model)


def test_nothing_named():
    with pytest.raises(CannotFreeze, match=r"Freeze\(\): nothing was named"):
        Freeze()
