"""M207: dropout in a frozen part."""

import torch
from planted_loops import m207, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
M207 warning: 2 dropout layers of a frozen part are active
  seen: training=True in encoder.{{2,4}} (x2) (set by net.train() at benchmarks/planted_loops/m207.py:{line})
        none of the parameters around them is trained; they are 100% of all frozen parameters
  at:   benchmarks/planted_loops/m207.py:{line}  net.train()  # <- M207
  fix:  frostline.freeze(net, "encoder")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(m207.failing())
    assert [f.code for f in found] == ["M207"]
    line = marked_line(m207.failing, "M207")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.UNSAFE)
    assert set(found[0].paths) == {"encoder.2", "encoder.4"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(m207.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "2 dropout layers of frozen parts did not drop" in found.sound


class Adapted(nn.Module):
    """A frozen layer with a small trainable one beside it."""

    def __init__(self):
        super().__init__()
        self.base, self.adapter = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

    def forward(self, x):
        return self.base(x) + self.adapter(x)


def test_a_small_frozen_part_between_adapters_is_only_an_info():
    torch.manual_seed(0)
    embedding = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1))
    net = nn.Sequential(embedding, Adapted(), Adapted(), nn.Dropout(0.1), nn.Linear(8, 3))
    net.requires_grad_(False)
    for layer in (net[1].adapter, net[2].adapter, net[4]):
        layer.requires_grad_(True)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    with fl.watch(net, optimizer) as seen:
        net.train()
        m207.fit(net, optimizer, 3)
    assert [(f.code, f.severity, f.paths) for f in examine(seen)] == [("M207", Severity.INFO, ("0.1",))]


def test_dropout_next_to_what_trains_is_silent():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    net[0].requires_grad_(False)
    optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1)
    with fl.watch(net, optimizer) as seen:
        m207.fit(net, optimizer, 3)
    assert list(examine(seen)) == []
