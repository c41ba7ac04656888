"""M206: attention that drops in eval mode."""

import torch
from planted_loops import m206, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
M206 error: attention drops in eval mode in 1 module
  seen: aten.bernoulli_ with dropout_p above 0 at benchmarks/planted_loops/m206.py:{line}  x = \
F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)  # <- M206
        training=False in Attention: 1
  at:   benchmarks/planted_loops/m206.py:{line}  x = F.scaled_dot_product_attention(q, k, v, \
dropout_p=self.dropout)  # <- M206
  fix:  dropout_p=p if self.training else 0.0"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(m206.failing())
    assert [f.code for f in found] == ["M206"]
    line = marked_line(m206.Attention.forward, "M206")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.MANUAL)
    assert set(found[0].paths) == {"1"}


def test_the_twin_is_silent():
    found = examine(m206.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "M206" in found.checked


def test_attention_of_torch_knows_its_mode():
    torch.manual_seed(0)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

        def forward(self, x):
            x = x.flatten(0, 1)
            return self.attention(x, x, x, need_weights=False)[0].unflatten(0, (4, 1))

    with fl.watch() as seen:
        m206.fit(Own(), 2)
    assert list(examine(seen)) == []
