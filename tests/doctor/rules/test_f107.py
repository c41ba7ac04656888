"""F107: statistics of a frozen part that move."""

import pytest
import torch
from planted_loops import f107, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F107 error: 2 normalization layers of a frozen part moved their statistics
  seen: 0.4.running_var: moved by up to 0.331 in 4 steps
        written by aten.native_batch_norm at benchmarks/planted_loops/f107.py:{line}  logits = model(x)  # <- F107
        training=True in 2 layers (set by model.train() at benchmarks/planted_loops/f107.py:{mode}); \
requires_grad=False does not stop statistics
        8 frozen parameters did not move
  at:   benchmarks/planted_loops/f107.py:{line}  logits = model(x)  # <- F107
  fix:  frostline.freeze(model, "0")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f107.failing())
    assert [f.code for f in found] == ["F107"]
    line = marked_line(f107.failing, "F107")
    assert str(found[0]) == TEXT.format(line=line, mode=line - 4)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.SAFE)
    assert set(found[0].paths) == {
        f"0.{layer}.{name}" for layer in (1, 4) for name in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f107.twin())
    assert list(found) == []
    assert "2 normalization layers of frozen parts kept their statistics" in found.sound


def test_the_remedy_in_memory_holds():
    seen = f107.failing()
    examine(seen).apply()
    model = seen.models[0].live
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()(__import__("torch").randn(8, 4))
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())


def train(model, optimizer, *, still=(), steps=2):
    """A healthy epoch: what is frozen is put into eval mode after every ``train()``."""
    model.train()
    for part in still:
        part.eval()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
        optimizer.step()


def codes(seen):
    return [f.code for f in examine(seen) if f.severity is not Severity.INFO]


def probed(model):
    """The head alone is trained; the trunk is frozen, and left out of the optimizer."""
    model[0].requires_grad_(False)
    train(model, torch.optim.SGD(model[1].parameters(), lr=0.1), still=[model[0]])


@pytest.mark.parametrize("again", ["new optimizer", "new group"])
def test_what_moves_after_it_was_unfrozen_is_meant(again):
    with fl.watch() as seen:
        model = f107.make()
        optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
        model[0].requires_grad_(False)
        train(model, optimizer, still=[model[0]])
        model[0].requires_grad_(True)
        if again == "new group":
            optimizer.add_param_group({"params": list(model[0].parameters())})
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer)
    assert codes(seen) == []
    assert not any(t.must_stay for t in seen.models[0].tensors.values())


def test_what_an_optimizer_takes_up_later_may_move():
    with fl.watch() as seen:
        model = f107.make()
        optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
        train(model, optimizer, still=[model[0]])
        optimizer.add_param_group({"params": list(model[0].parameters())})
        train(model, optimizer)
    assert "F107" not in codes(seen)


def test_one_part_after_the_other_is_unfrozen_with_a_validation_in_each_epoch():
    with fl.watch() as seen:
        model = f107.make()
        trunk, head = model
        parts = [head, trunk[3:], trunk[:3]]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for epoch in range(3):
            for i, part in enumerate(parts):
                part.requires_grad_(i <= epoch)
            train(model, optimizer, still=[m for part in parts[epoch + 1 :] for m in part])
            model.eval()
            with torch.no_grad():
                model(torch.randn(16, 4))
    assert codes(seen) == []


def test_what_moved_while_it_was_frozen_is_told_although_it_is_unfrozen_later():
    with fl.watch() as seen:
        model = f107.make()
        model[0].requires_grad_(False)
        train(model, torch.optim.SGD(model[1].parameters(), lr=0.1))
        model[0].requires_grad_(True)
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    found = next(f for f in examine(seen) if f.code == "F107")
    assert len(found.paths) == 6
    # How far it moved while it trained is not added.
    mean = seen.models[0].tensors["0.1.running_mean"]
    assert mean.drift[-1][0] == 2


def test_a_forward_pass_before_unfreezing_counts_too():
    with fl.watch() as seen:
        model = f107.make()
        probed(model)
        model[0].train()
        with torch.no_grad():
            model(torch.randn(16, 4))
        model[0].requires_grad_(True)
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert "F107" in codes(seen)


@pytest.mark.parametrize("still", [True, False])
def test_what_is_frozen_again_must_stay_again(still):
    with fl.watch() as seen:
        model = f107.make()
        probed(model)
        model[0].requires_grad_(True)
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
        model[0].requires_grad_(False)
        train(model, torch.optim.SGD(model[1].parameters(), lr=0.1), still=[model[0]] if still else [])
    assert codes(seen) == ([] if still else ["M203"])  # which explains F107
    mean = seen.models[0].tensors["0.1.running_mean"]
    assert (mean.must_stay, mean.moved) == ("requires_grad", not still)


def test_what_stays_frozen_is_told_beside_a_part_that_was_unfrozen():
    with fl.watch() as seen:
        model = f107.make()
        probed(model)
        model[0][3:].requires_grad_(True)
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    (found,) = [f for f in examine(seen) if f.severity is not Severity.INFO]
    assert (found.code, found.paths) == ("M203", ("0.1",))
    tensors = seen.models[0].tensors
    assert {t.module for t in tensors.values() if t.must_stay and t.moved} == {"0.1"}
