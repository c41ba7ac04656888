"""One head while it trains: what a step does to it, and when it stops."""

from __future__ import annotations

import torch
from torch import nn

from frostline.fast.head_run import HeadRun
from frostline.fast.head_task import HeadTask
from frostline.heads.initial import new_head
from frostline.state.digest import digest_all

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
ORDER = torch.arange(8)


def epoch(run: HeadRun, accuracy: float) -> None:
    """An epoch whose validation has this share of right answers."""
    run.begin_epoch(ORDER)
    run.step((X,), 0, 0)
    run.begin_validation()
    with torch.no_grad():
        predicted = run.module(X).argmax(1)
    right = torch.arange(8) < round(accuracy * 8)
    run._val_targets = torch.where(right, predicted, 1 - predicted)
    run.validate((X,), 0)
    run.end_epoch()


def test_a_new_head_starts_as_torchs_own_from_its_seed():
    run = HeadRun("a", HeadTask(ORDER % 2, out_features=2, seed=5), (X,))
    like = new_head(nn.Linear(4, 2), 2, torch.Generator().manual_seed(5))
    assert digest_all(dict(run.module.named_parameters())) == digest_all(dict(like.named_parameters()))


def test_patience_counts_epochs_since_the_first_best_one():
    task = HeadTask(ORDER % 2, ORDER % 2, out_features=2, patience=2, epochs=20)
    run = HeadRun("a", task, (X,))
    states: list[dict[str, str]] = []
    for accuracy in (0.5, 0.75, 0.75, 0.5):
        assert run.active
        epoch(run, accuracy)
        states.append(digest_all(dict(run.module.named_parameters())))
    assert not run.active
    assert run.stopped_early
    assert run.best is not None
    assert (run.best.epoch, run.best.accuracy) == (2, 0.75)
    run.finish()
    assert digest_all(dict(run.module.named_parameters())) == states[1] != states[3]


def test_without_patience_the_last_state_stays():
    run = HeadRun("a", HeadTask(ORDER % 2, ORDER % 2, out_features=2, epochs=2), (X,))
    epoch(run, 1.0)
    epoch(run, 0.5)
    last = digest_all(dict(run.module.named_parameters()))
    run.finish()
    assert digest_all(dict(run.module.named_parameters())) == last
    assert not run.active
    assert not run.stopped_early


def test_a_loss_that_is_not_finite_stops_before_the_step():
    run = HeadRun("a", HeadTask(ORDER % 2, out_features=2), (X,))
    before = digest_all(dict(run.module.named_parameters()))
    run.begin_epoch(ORDER)
    run.step((X * float("nan"),), 0, 0)
    assert run.diverged == "the loss became nan in epoch 1, step 1"
    assert run.end_epoch() is None
    assert digest_all(dict(run.module.named_parameters())) == before
