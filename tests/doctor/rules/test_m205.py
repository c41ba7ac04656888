"""M205: dropout in eval mode."""

import torch
from planted_loops import m205, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
M205 error: dropout is active in eval mode in 1 module
  seen: aten.bernoulli_ at benchmarks/planted_loops/m205.py:{line}  x = F.dropout(F.relu(self.first(x)), 0.5)  # <- \
M205
        training=False in Careless: (root)
  at:   benchmarks/planted_loops/m205.py:{line}  x = F.dropout(F.relu(self.first(x)), 0.5)  # <- M205
  fix:  pass training=self.training to functional.dropout, or use torch.nn.Dropout"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(m205.failing())
    assert [f.code for f in found] == ["M205"]
    line = marked_line(m205.Careless.forward, "M205")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.MANUAL)
    assert set(found[0].paths) == {""}


def test_the_twin_is_silent():
    found = examine(m205.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "M205" in found.checked


def test_layers_that_know_their_mode_are_silent():
    torch.manual_seed(0)
    attention = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
    with fl.watch() as seen:
        m205.fit(nn.Sequential(nn.Unflatten(1, (1, 4)), attention, nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)), 2)
    found = examine(seen)
    assert list(found) == []
    assert "no dropout in eval mode in 1 model with dropout layers" in found.sound


def test_units_that_are_sampled_are_only_an_info():
    class Sampled(m205.Careful):
        def forward(self, x):
            return self.last(torch.bernoulli(torch.sigmoid(self.first(x))) + self.first(x))

    torch.manual_seed(0)
    with fl.watch() as seen:
        m205.fit(Sampled(), 2)
    assert [(f.code, f.severity) for f in examine(seen)] == [("M205", Severity.INFO)]


def test_dropout_layers_that_were_put_into_train_mode_are_meant():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5)).eval()
    net[1].train()
    with fl.watch(net) as seen, torch.no_grad():
        net(torch.randn(8, 4))
    assert list(examine(seen)) == []
