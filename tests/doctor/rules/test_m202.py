"""M202: train mode that was not restored."""

import torch
from planted_loops import m202, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
M202 error: 1 normalization layer and 1 dropout layer of net stayed in eval mode after validation
  seen: net.eval() at benchmarks/planted_loops/m202.py:{line} switched them; no train() came before the next \
training step
        2 steps in eval mode, the first from benchmarks/planted_loops/m202.py:{step}  \
nn.functional.cross_entropy(net(x), y).backward()
        eval mode in {{1,3}} (x2)
  at:   benchmarks/planted_loops/m202.py:{line}  net.eval()  # <- M202
  fix:  call net.train() after validation, or at the start of each epoch"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(m202.failing())
    assert [f.code for f in found] == ["M202"]
    line = marked_line(m202.failing, "M202")
    assert str(found[0]) == TEXT.format(line=line, step=line - 17)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)
    assert set(found[0].paths) == {"1", "3"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(m202.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "train mode was restored after validation in 1 model" in found.sound


def test_layers_that_are_put_into_eval_mode_one_by_one_are_meant():
    with fl.watch() as seen:
        net = m202.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for epoch in range(3):
            net.train()
            if epoch:
                for m in net.modules():
                    if isinstance(m, nn.BatchNorm1d):
                        m.eval()
            m202.train_epoch(net, optimizer)
            net.eval()
            m202.accuracy(net)
    assert "M202" not in codes(seen)


def test_eval_mode_for_the_last_epochs_without_a_validation_before_is_meant():
    with fl.watch() as seen:
        net = m202.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        m202.train_epoch(net, optimizer)
        net.eval()
        m202.train_epoch(net, optimizer)
    assert "M202" not in codes(seen)


def test_adversarial_examples_in_eval_mode_are_no_training():
    with fl.watch() as seen:
        net = m202.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(4):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            net.eval()
            shift = torch.zeros_like(x, requires_grad=True)
            nn.functional.cross_entropy(net(x + shift), y).backward()
            net.train()
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x + 0.1 * shift.grad.sign()), y).backward()
            optimizer.step()
    assert "M202" not in codes(seen)


def test_validation_that_forgets_no_grad_is_seen_too():
    with fl.watch() as seen:
        net = m202.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        m202.train_epoch(net, optimizer)
        net.eval()
        for _ in range(3):
            net(torch.randn(16, 4))
        m202.train_epoch(net, optimizer)
    assert codes(seen)[0] == "M202"


def codes(seen):
    return [f.code for f in examine(seen)]
