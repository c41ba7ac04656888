"""M204: a mode that was set on a module alone."""

import torch
from planted_loops import m204, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
M204 error: net was switched to eval mode alone: 1 normalization layer and 1 dropout layer below it were not
  seen: net.training was set to False without a call of eval(), at benchmarks/planted_loops/m204.py:{line}  \
net.training = False  # <- M204
        train mode in 1 normalization layer and 1 dropout layer below it: {{1,3}} (x2)
        seen in the forward pass at benchmarks/planted_loops/m204.py:{use}  net(torch.randn(16, 4)).argmax(1)
        statistics that moved in it: 1.running_mean, 1.running_var, 1.num_batches_tracked
  at:   benchmarks/planted_loops/m204.py:{line}  net.training = False  # <- M204
  fix:  net.eval() in place of net.training = False"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(m204.failing())
    assert [f.code for f in found] == ["M204"]
    line = marked_line(m204.failing, "M204")
    assert str(found[0]) == TEXT.format(line=line, use=line + 2)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)
    assert set(found[0].paths) == {"1", "3"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(m204.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "train() and eval() reached all layers of 1 model" in found.sound


def test_train_mode_of_the_parent_alone_is_seen_too():
    with fl.watch() as seen:
        net = m204.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        m204.train_epoch(net, optimizer)
        net.eval()
        with torch.no_grad():
            net(torch.randn(16, 4))
        net.training = True
        step(net, optimizer)
    found = examine(seen)
    assert found[0].code == "M204"
    assert found[0].message == (
        "net was switched to train mode alone: 1 normalization layer and 1 dropout layer below it were not"
    )


def test_flags_that_are_written_on_every_module_are_right():
    with fl.watch() as seen:
        net = m204.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        m204.train_epoch(net, optimizer)
        for m in net.modules():
            m.training = False
        with torch.no_grad():
            net(torch.randn(16, 4))
    assert list(examine(seen)) == []


def test_dropout_that_is_left_on_by_a_call_is_meant():
    with fl.watch() as seen:
        net = m204.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        m204.train_epoch(net, optimizer)
        net.eval()
        for m in net.modules():
            if isinstance(m, nn.Dropout):
                m.train()
        with torch.no_grad():
            net(torch.randn(16, 4))
    assert "M204" not in [f.code for f in examine(seen)]


def test_flags_that_are_put_back_to_what_they_were_are_right():
    # As Lightning does around validation: each module gets the mode that it was found in.
    net = m204.make()
    fl.freeze(net, "1", "3")
    with fl.watch() as seen:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        step(net, optimizer)
        modes = {m: m.training for m in net.modules()}
        net.eval()
        with torch.no_grad():
            net(torch.randn(16, 4))
        for m, mode in modes.items():
            m.training = mode
        step(net, optimizer)
    assert "M204" not in [f.code for f in examine(seen)]


def step(net, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
    optimizer.step()
