"""N303: batch statistics in eval mode, hard-coded."""

import torch
from planted_loops import marked_line, n303
from torch import nn
from torch.nn import functional

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
N303 error: 1 module normalizes with the batch in eval mode, hard-coded
  seen: aten.native_batch_norm with statistics of the batch at benchmarks/planted_loops/n303.py:{line}  return \
F.batch_norm(x, mean, var, self.weight, self.bias, training=True)  # <- N303
        training=False in Norm: 1
        statistics that moved in eval mode: 1.running_mean, 1.running_var
  at:   benchmarks/planted_loops/n303.py:{line}  return F.batch_norm(x, mean, var, self.weight, self.bias, \
training=True)  # <- N303
  fix:  pass training=self.training to functional.batch_norm"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(n303.failing())
    assert [f.code for f in found] == ["N303"]
    line = marked_line(n303.Norm.forward, "N303")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.MANUAL)
    assert set(found[0].paths) == {"1"}


def test_the_twin_is_silent():
    found = examine(n303.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "N303" in found.checked


class StandardizedConv(nn.Conv2d):
    """Weight standardization, as timm computes it."""

    def forward(self, x):
        weight = functional.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True)
        return functional.conv2d(x, weight.reshape_as(self.weight), self.bias)


def test_without_statistics_it_is_a_warning():
    class Bare(n303.Norm):
        def forward(self, x):
            return functional.batch_norm(x, None, None, self.weight, self.bias, training=True)

    torch.manual_seed(0)
    with fl.watch() as seen:
        n303.fit(Bare(8), 2)
    assert [(f.code, f.severity) for f in examine(seen)] == [("N303", Severity.WARNING)]


def test_instance_norm_and_weight_standardization_look_at_one_sample():
    torch.manual_seed(0)
    net = nn.Sequential(StandardizedConv(1, 4, 3), nn.InstanceNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with fl.watch(net, optimizer) as seen:
        for _ in range(2):
            optimizer.zero_grad()
            functional.cross_entropy(net(torch.randn(4, 1, 6, 6)), torch.randint(3, (4,))).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            net(torch.randn(4, 1, 6, 6))
    assert list(examine(seen)) == []


def test_batch_norm_itself_is_right():
    torch.manual_seed(0)
    with fl.watch() as seen:
        n303.fit(nn.BatchNorm1d(8), 2)
    found = examine(seen)
    assert list(found) == []
    assert "1 batch norm did not use the batch in eval mode" in found.sound
