"""M201: validation in train mode."""

import torch
from planted_loops import m201, marked_line
from torch import nn
from torch.optim.swa_utils import update_bn

import frostline as fl
from frostline.audit import Contract
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
M201 error: 1 normalization layer and 1 dropout layer of net ran in train mode in validation
  seen: 4 passes without gradients in train mode, the first at benchmarks/planted_loops/m201.py:{line}  correct += \
(net(x).argmax(1) == y).sum().item()  # <- M201
        statistics that moved on this data: 1.running_mean, 1.running_var, 1.num_batches_tracked
        training=True in 1 normalization layer and 1 dropout layer: {{1,3}} (x2)
        the last to set it was net.train() at benchmarks/planted_loops/m201.py:{mode}
  at:   benchmarks/planted_loops/m201.py:{line}  correct += (net(x).argmax(1) == y).sum().item()  # <- M201
  fix:  call net.eval() before these passes and net.train() after them"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(m201.failing())
    assert [f.code for f in found] == ["M201"]
    line = marked_line(m201.failing, "M201")
    assert str(found[0]) == TEXT.format(line=line, mode=line - 10)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)
    assert set(found[0].paths) == {"1", "3"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(m201.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 validation passes ran in eval mode" in found.sound


def test_passes_that_feed_the_next_step_are_no_validation():
    with fl.watch() as seen:
        net = m201.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(4):
            x, _ = m201.batch()
            with torch.no_grad():
                pseudo = net(x).softmax(1)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x + 0.1), pseudo).backward()
            optimizer.step()
    assert "M201" not in codes(examine(seen))


def test_parts_that_are_called_one_after_the_other_are_one_model():
    torch.manual_seed(0)
    with fl.watch() as seen:
        net = nn.ModuleDict({"encoder": m201.make(), "head": nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3))})
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            for _ in range(2):
                x, y = m201.batch()
                optimizer.zero_grad()
                nn.functional.cross_entropy(net["head"](net["encoder"](x)), y).backward()
                optimizer.step()
            with torch.no_grad():
                for _ in range(2):
                    net["head"](net["encoder"](torch.randn(16, 4)))
    found = examine(seen)
    assert [(f.code, set(f.paths)) for f in found] == [("M201", {"encoder.1", "encoder.3", "head.0"})]


def test_a_pass_before_the_first_step_is_no_validation():
    with fl.watch() as seen:
        net = m201.make()
        with torch.no_grad():
            net(torch.zeros(2, 4))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            train_step(net, optimizer)
    assert "M201" not in codes(examine(seen))


def test_what_an_agent_does_before_it_learns_is_no_validation():
    with fl.watch() as seen:
        net = m201.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            with torch.no_grad():
                for _ in range(4):
                    net(torch.randn(16, 4))
            for _ in range(2):
                train_step(net, optimizer)
    assert "M201" not in codes(examine(seen))


def test_update_bn_is_no_validation():
    with fl.watch() as seen:
        net = m201.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            train_step(net, optimizer)
        update_bn([m201.batch() for _ in range(2)], net)
    assert "M201" not in codes(examine(seen))


def test_statistics_that_are_declared_to_move_are_left_alone():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with fl.watch(net, optimizer, Contract(moving=("*running_*", "*num_batches_tracked"))) as seen:
        for _ in range(3):
            train_step(net, optimizer)
        with torch.no_grad():
            net(torch.randn(16, 4))
    assert "M201" not in codes(examine(seen))


def test_samples_of_a_generator_are_only_an_info():
    torch.manual_seed(0)
    with fl.watch() as seen:
        generator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        critic = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
        of_generator = torch.optim.Adam(generator.parameters())
        of_critic = torch.optim.Adam(critic.parameters())
        for _ in range(3):
            with torch.no_grad():
                fake = generator(torch.randn(8, 2))
            of_critic.zero_grad()
            (critic(fake).mean() - critic(torch.randn(8, 4)).mean()).backward()
            of_critic.step()
            of_generator.zero_grad()
            (-critic(generator(torch.randn(8, 2))).mean()).backward()
            of_generator.step()
        with torch.no_grad():
            generator(torch.randn(8, 2))
    found = examine(seen)
    assert [(f.code, f.severity) for f in found if f.model == "generator"] == [("M201", Severity.INFO)]
    assert found.worse_than(Severity.WARNING) == []


def test_a_script_that_only_evaluates_is_told_too():
    net = m201.make()
    with fl.watch(net) as seen, torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, 4))
    found = examine(seen)
    assert [(f.code, f.severity) for f in found] == [("M201", Severity.WARNING)]
    assert "nothing had set it" in found[0].evidence
    with fl.watch(net.eval()) as seen, torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, 4))
    assert list(examine(seen)) == []


def train_step(net, optimizer):
    x, y = m201.batch()
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()


def codes(found):
    return [f.code for f in found]
