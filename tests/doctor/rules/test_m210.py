"""M210: eval mode that changes the model."""

import torch
from planted_loops import m210, marked_line
from torch import nn
from torch.nn import functional

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
M210 error: 1 dropout rate of net went to 0 in eval mode and stayed there
  seen: dropout_p: 0.5 in the training pass before, 0.0 in the one after
        eval mode in between, in the pass at benchmarks/planted_loops/m210.py:{line}  net(torch.randn(16, 4))  # <- \
M210
  at:   benchmarks/planted_loops/m210.py:{line}  net(torch.randn(16, 4))  # <- M210
  fix:  leave the rate alone and use it only where self.training is true"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(m210.failing())
    assert [f.code for f in found] == ["M210"]
    line = marked_line(m210.fit, "M210")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.MANUAL)
    assert set(found[0].paths) == {""}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(m210.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "1 model came back from eval mode as it was" in found.sound


class Adapter(nn.Linear):
    """Merges a low-rank update into its weight in eval mode."""

    def __init__(self, *, restores: bool):
        super().__init__(4, 3)
        self.low = nn.Parameter(torch.full((3, 4), 0.1))
        self.merged, self.restores = False, restores

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged and (self.restores or not mode):
            # Past the version counter, as the first implementation of LoRA does it.
            self.weight.data += (-1 if mode else 1) * self.low.data
            self.merged = not mode
        return self

    def forward(self, x):
        return functional.linear(x, self.weight if self.merged else self.weight + self.low, self.bias)


def test_an_adapter_that_merges_and_unmerges_is_only_an_info():
    torch.manual_seed(0)
    with fl.watch() as seen:
        m210.fit(nn.Sequential(Adapter(restores=True)), 2)
    assert [(f.code, f.severity, f.paths) for f in examine(seen)] == [("M210", Severity.INFO, ("0.weight",))]


def test_an_adapter_that_stays_merged_is_an_error():
    torch.manual_seed(0)
    with fl.watch() as seen:
        m210.fit(nn.Sequential(Adapter(restores=False)), 2)
    first = examine(seen)[0]
    assert (first.code, first.severity) == ("M210", Severity.ERROR)
    assert first.message == "eval() itself changed 1 tensor of net, and train() did not change it back"


def test_schedules_of_rates_are_silent():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    with fl.watch() as seen:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for epoch in range(3):
            net.train()
            net[1].momentum, net[2].p = 0.1 / 2**epoch, 0.3 - 0.1 * epoch
            for _ in range(2):
                optimizer.zero_grad()
                functional.cross_entropy(net(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
                optimizer.step()
            net.eval()
            with torch.no_grad():
                net(torch.randn(16, 4))
    assert list(examine(seen)) == []
