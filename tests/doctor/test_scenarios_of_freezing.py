"""The scenarios S1, S2 and S4 as their users wrote them: the right cause comes first, with its line."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class SmallResNet(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.layer1, self.layer2 = nn.Sequential(Block(8), Block(8)), nn.Sequential(Block(8))
        self.fc = nn.Linear(8, classes)

    def features(self, x):
        return self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())).mean((2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = SmallResNet(16)
        self.head1, self.head2 = nn.Linear(16, 2), nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 10))

    def forward(self, x):
        features = self.trunk(x)
        return self.head1(features), self.head2(features)


def line_of(function, text):
    lines, first = inspect.getsourcelines(function)
    (line,) = [first + i for i, line in enumerate(lines) if text in line]
    return line


def images(count=16):
    return torch.rand(count, 1, 8, 8), torch.randint(2, (count,))


def train_head_1():
    net = TwoHeads()
    for part in (net.trunk, net.head2):
        for param in part.parameters():
            param.requires_grad = False
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(2):
        net.train()
        for _ in range(3):
            x, y = images()
            optimizer.zero_grad()
            out, _ = net(x)
            nn.functional.cross_entropy(out, y).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            net(images()[0])
    return max(float((p - before[n]).abs().max()) for n, p in net.named_parameters() if not n.startswith("head1"))


def test_s1_two_heads_on_one_trunk():
    torch.manual_seed(0)
    with fl.watch() as seen:
        difference = train_head_1()
    assert difference == 0.0  # what the user looked at
    first = examine(seen)[0]
    assert (first.code, first.severity) == ("F107", Severity.ERROR)
    assert first.message == "8 normalization layers of a frozen part moved their statistics"
    assert (first.line, first.source) == (line_of(train_head_1, "net(x)"), "out, _ = net(x)")
    assert [f.code for f in examine(seen) if f.severity is not Severity.INFO] == ["F107"]


def look_twice():
    net = SmallResNet()
    net.requires_grad_(False)
    train_x, test_x = images()[0], images()[0]
    outputs = []
    for _ in range(2):
        net.train()
        net(train_x)
        net.eval()
        outputs.append(net(test_x))
    return outputs


def test_s2_the_frozen_net_that_changes_from_epoch_to_epoch():
    torch.manual_seed(0)
    with fl.watch() as seen:
        one, two = look_twice()
    assert not one.equal(two)
    found = [f for f in examine(seen) if f.severity is not Severity.INFO]
    assert [f.code for f in found] == ["F107"]
    assert found[0].line == line_of(look_twice, "net(train_x)")
    assert len({p.rpartition(".")[0] for p in found[0].paths}) == 7


def fit(model, optimizer, scheduler=None):
    for _ in range(2):
        model.train()
        for _ in range(2):
            x, y = images()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        if scheduler is not None:
            scheduler.step()


def misspelt():
    model = SmallResNet()
    for param in model.parameters():
        param.require_grad = False
    model.fc = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    fit(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1))


def no_such_method():
    model = SmallResNet()
    trunk = [p for name, p in model.name_parameters() if name != "fc"]
    fit(model, torch.optim.SGD(trunk, lr=0.001))


def filtered_before_freezing():
    model = SmallResNet(2)
    optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), lr=0.001)
    for param in model.layer1.parameters():
        param.requires_grad = False
    fit(model, optimizer)


def test_s4_the_misspelt_attribute():
    torch.manual_seed(0)
    with fl.watch() as seen:
        misspelt()
    found = [f for f in examine(seen) if f.severity is not Severity.INFO]
    assert [f.code for f in found] == ["F101"]
    assert found[0].line == line_of(misspelt, "require_grad")
    assert "fc.weight" not in found[0].paths


def test_s4_freezing_after_the_optimizer_was_made_moves_statistics_only():
    torch.manual_seed(0)
    with fl.watch() as seen:
        filtered_before_freezing()
    found = examine(seen)
    assert found[0].code == "F107"
    assert not [f for f in found if f.code in {"F108", "F109", "F110", "F115"}]


def test_s4_a_method_that_no_module_has_is_no_matter_of_freezing():
    with pytest.raises(AttributeError, match="name_parameters"), fl.watch() as seen:
        no_such_method()
    assert not [f for f in examine(seen) if f.code.startswith("F")]
