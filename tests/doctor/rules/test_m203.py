"""M203: eval mode of a part that train() undid."""

import pytest
import torch
from planted_loops import m203, marked_line
from torch import nn

import frostline as fl
from frostline.audit import Contract
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
M203 error: 1 normalization layer and 1 dropout layer that were put into eval mode ran in train mode in training
  seen: eval mode was set by net.trunk.eval() at benchmarks/planted_loops/m203.py:{evaluated}
        train mode was set again by net.train() at benchmarks/planted_loops/m203.py:{line}
        in train mode in the training pass at benchmarks/planted_loops/m203.py:{step}: trunk.{{1,3}} (x2)
        statistics moved in 1 layer
  at:   benchmarks/planted_loops/m203.py:{line}  net.train()  # <- M203
  fix:  frostline.freeze(net, "trunk")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(m203.failing())
    assert [f.code for f in found] == ["M203"]
    line = marked_line(m203.failing, "M203")
    assert str(found[0]) == TEXT.format(line=line, step=line - 11, evaluated=line - 3)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.SAFE)
    assert set(found[0].paths) == {"trunk.1", "trunk.3"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(m203.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "2 layers stayed in eval mode while the rest trained" in found.sound


def test_a_part_that_was_only_validated_may_train_again():
    with fl.watch() as seen:
        net = m203.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net.trunk.eval()
        with torch.no_grad():
            net.trunk(torch.randn(8, 4))
        net.train()
        m203.train_epoch(net, optimizer)
    assert "M203" not in [f.code for f in examine(seen)]


def test_a_part_that_is_validated_in_every_epoch_may_train():
    with fl.watch() as seen:
        net = m203.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            net.trunk.eval()
            with torch.no_grad():
                net.trunk(torch.randn(8, 4))
            net.train()
            for _ in range(2):
                x, y = torch.randn(16, 4), torch.randint(3, (16,))
                optimizer.zero_grad()
                nn.functional.cross_entropy(net.head(net.trunk(x)), y).backward()
                optimizer.step()
    assert "M203" not in [f.code for f in examine(seen)]


def test_parts_that_are_called_one_after_the_other_count_too():
    with fl.watch() as seen:
        net = m203.make()
        net.trunk.requires_grad_(False)
        net.trunk.eval()
        optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
        net.train()
        for _ in range(3):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net.head(net.trunk(x)), y).backward()
            optimizer.step()
    assert [f.code for f in examine(seen)] == ["M203"]


def test_a_part_that_is_switched_by_its_own_calls_is_meant():
    with fl.watch() as seen:
        net = m203.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            net.trunk.eval()
            m203.train_epoch(net, optimizer)
            net.trunk.train()
            m203.train_epoch(net, optimizer)
    assert "M203" not in [f.code for f in examine(seen)]


def test_a_part_whose_eval_mode_was_declared():
    net = m203.make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with fl.watch(net, optimizer, Contract(eval=("trunk.3",))) as seen:
        net.train()
        m203.train_epoch(net, optimizer)
    found = examine(seen)
    assert [(f.code, f.severity, f.inferred, f.paths) for f in found] == [
        ("M203", Severity.WARNING, False, ("trunk.3",))
    ]


def test_later_epochs_count_too():
    with fl.watch() as seen:
        net = m203.make()
        net.trunk.requires_grad_(False)
        optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
        net.trunk.eval()
        m203.train_epoch(net, optimizer)
        net.eval()
        with torch.no_grad():
            net(torch.randn(8, 4))
        net.train()
        m203.train_epoch(net, optimizer)
    assert [f.code for f in examine(seen)] == ["M203"]


@pytest.mark.parametrize("frozen", [True, False])
def test_the_remedy_in_memory_holds_the_mode_and_nothing_else(frozen):
    with fl.watch() as seen:
        net = m203.make()
        net.trunk.requires_grad_(not frozen)
        net.trunk.eval()
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
        net.train()
        m203.train_epoch(net, optimizer)
    found = examine(seen)
    trains = [p for p in net.parameters() if p.requires_grad]
    assert found.apply() == ["M203: a hold on the mode of 2 layers"]
    assert all(p.requires_grad for p in trains)
    with fl.watch(net, optimizer) as again:
        net.train()
        m203.train_epoch(net, optimizer)
    assert [f for f in examine(again) if f.code == "M203"] == []
    assert not net.trunk[1].training
    assert not net.trunk[3].training
    assert isinstance(net.trunk[1], nn.BatchNorm1d)


def test_what_a_hold_let_go_of_is_meant_to_train():
    with fl.watch() as seen:
        net = m203.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        hold = fl.freeze(net, "trunk", optimizer=optimizer)
        net.train()
        m203.train_epoch(net, optimizer)
        net.eval()
        with torch.no_grad():
            net(torch.randn(16, 4))
        hold.thaw()
        net.train()
        m203.train_epoch(net, optimizer)
    assert [f for f in examine(seen) if f.code == "M203"] == []


def unfrozen(*, evals, loses=False, again=False):
    """Probe the head, then train everything; ``evals`` after each ``train()`` while the trunk is frozen, or once."""
    with fl.watch() as seen:
        net = m203.make()
        net.trunk.requires_grad_(False)
        net.trunk.eval()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            net.train()
            if evals:
                net.trunk.eval()
            m203.train_epoch(net, optimizer)
        net.trunk.requires_grad_(True)
        net.train()
        m203.train_epoch(net, optimizer)
        if again:
            net.trunk.requires_grad_(False)
            net.trunk.eval()
            if loses:
                net.train()
            m203.train_epoch(net, optimizer)
    return seen


def test_a_part_that_was_unfrozen_may_train():
    seen = unfrozen(evals=True)
    assert [f.code for f in examine(seen) if f.severity is not Severity.INFO] == []
    assert not any(module.must_eval for module in seen.models[0].modules.values())


def test_a_part_that_lost_its_mode_while_it_was_frozen_is_told_although_it_is_unfrozen_later():
    found = [f for f in examine(unfrozen(evals=False)) if f.code == "M203"]
    assert [f.paths for f in found] == [("trunk.1", "trunk.3")]


@pytest.mark.parametrize("loses", [True, False])
def test_a_part_that_is_frozen_again_must_keep_its_mode_again(loses):
    found = [f.code for f in examine(unfrozen(evals=True, again=True, loses=loses)) if f.severity is not Severity.INFO]
    assert (found == ["M203"]) is loses
    assert bool(found) is loses


@pytest.mark.parametrize("moving", ["trunk", "trunk.1.*"])
def test_what_may_move_may_train(moving):
    net = m203.make()
    net.trunk.requires_grad_(False)
    optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
    with fl.watch(net, optimizer, Contract(moving=(moving,))) as seen:
        net.trunk.eval()
        net.train()
        m203.train_epoch(net, optimizer)
    found = [path for f in examine(seen) if f.code in {"M203", "F107"} for path in f.paths]
    assert found == ([] if moving == "trunk" else ["trunk.3"])
