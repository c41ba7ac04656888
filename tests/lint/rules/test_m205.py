"""M205: a part draws random numbers in eval mode too."""

from __future__ import annotations

import pytest

CODE = "M205"
MODULE = """
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.p = 0.5

    def forward(self, x, training=True):
        {line}
        return self.fc(x)
"""
PLAIN = MODULE.replace(", training=True", "")
TRUE = {
    "missing": PLAIN.format(line="x = F.dropout(x, 0.5)  # <- M205"),
    "from an attribute": PLAIN.format(line="x = F.dropout(F.relu(x), p=self.p)  # <- M205"),
    "2d, spelled out": PLAIN.format(line="x = torch.nn.functional.dropout2d(x)  # <- M205"),
    "written as True": PLAIN.format(line="x = F.dropout(x, 0.5, True)  # <- M205"),
    "written as True by name": PLAIN.format(line="x = F.alpha_dropout(x, training=True)  # <- M205"),
    "torch.dropout": PLAIN.format(line="x = torch.dropout(x, 0.1, True)  # <- M205"),
    "the function is told": MODULE.format(line="x = F.dropout(x, 0.5)  # <- M205"),
    "in an inner function": PLAIN.format(line="x = [F.dropout(y) for y in x]  # <- M205"),
    "made anew": PLAIN.format(line="x = nn.Dropout(0.5)(x)  # <- M205"),
    "made anew, with a name": PLAIN.format(line="drop = nn.Dropout(0.5); x = drop(x)  # <- M205"),
    "from-import, Lightning": """
        import lightning.pytorch as pl
        from torch.nn.functional import dropout
        class Lit(pl.LightningModule):
            def embed(self, x):
                return dropout(x, 0.2)  # <- M205
            def forward(self, x):
                return self.embed(x)
        """,
    "a function that a module calls": """
        from torch import nn
        from torch.nn import functional as F
        def attention(q, k, v):
            weights = (q @ k).softmax(-1)
            return F.dropout(weights, 0.1) @ v  # <- M205
        class Layer(nn.Module):
            def forward(self, x):
                return attention(x, x, x)
        """,
    "a function library": """
        import torch.nn.functional as F
        def block(x, weight, p, training):
            x = F.dropout(x, p)  # <- M205
            return F.linear(x, weight)
        """,
    "given the module": """
        from torch import nn
        def eager_attention(module: nn.Module, q, k):
            return nn.functional.dropout(q @ k, p=0.1)  # <- M205
        """,
    "base from elsewhere": """
        from torch_geometric.nn import MessagePassing
        import torch.nn.functional as F
        class Conv(MessagePassing):
            def forward(self, x):
                return F.dropout(x, 0.5)  # <- M205
        """,
    "planted": """
        import torch
        from torch import nn
        from torch.nn import functional as F
        class Careless(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.Linear(4, 8)
                self.last = nn.Linear(8, 3)
            def forward(self, x):
                x = F.dropout(F.relu(self.first(x)), 0.5)  # <- M205
                return self.last(x)
        """,
}
SILENT = {
    "told": PLAIN.format(line="x = F.dropout(x, 0.5, training=self.training)"),
    "told by place": PLAIN.format(line="x = F.dropout(x, 0.5, self.training)"),
    "functional style": MODULE.format(line="x = F.dropout(x, 0.5, training=training)"),
    "off": PLAIN.format(line="x = F.dropout(x, 0.5, training=False)"),
    "no rate": PLAIN.format(line="x = F.dropout(x, 0.0)"),
    "never drops": PLAIN.format(line="x = F.alpha_dropout(x, 0.1)"),
    "under the mode": PLAIN.format(line="if self.training: x = F.dropout(x, 0.5)"),
    "conditional expression": PLAIN.format(line="x = F.dropout(x, 0.5) if self.training else x"),
    "rate by the mode": PLAIN.format(line="p = self.p if self.training else 0.0; x = F.dropout(x, p)"),
    "rate times the mode": PLAIN.format(line="x = F.dropout(x, self.p * self.training)"),
    "kept arguments": PLAIN.format(line="x = F.dropout(x, **self.options)"),
    "rate set by the mode": PLAIN.format(line="if not self.training: self.p = 0.0\n        x = F.dropout(x, self.p)"),
    "rate set by train()": """
        class Net(nn.Module):
            def train(self, mode=True):
                self.p = 0.1 * mode
                return super().train(mode)
            def forward(self, x):
                return F.dropout(x, self.p)
        """,
    "returned before": """
        class Drop(nn.Module):
            def forward(self, x):
                if not self.training or self.p == 0:
                    return x
                return F.dropout(x, self.p)
        """,
    "Monte Carlo": """
        class MCDropout(nn.Module):
            def forward(self, x):
                return F.dropout(x, 0.5, training=True)
        """,
    "Monte Carlo method": """
        class Net(nn.Module):
            def mc_forward(self, x):
                return F.dropout(x, 0.5)
        """,
    "training only": """
        class Lit(pl.LightningModule):
            def training_step(self, batch, i):
                return self(F.dropout(batch, 0.2))
        """,
    "no module": "def augment(x):\n    return F.dropout(x, 0.5)\nx = F.dropout(x)",
    "a layer made in __init__": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop = nn.Dropout(0.5)
            def forward(self, x):
                return self.drop(x)
        """,
    "a layer with the mode": PLAIN.format(line="x = nn.Dropout(0.5).train(self.training)(x)"),
    "another dropout": "class Net(nn.Module):\n    def forward(self, x):\n        return mine.dropout(x, 0.5)",
    "planted twin": """
        class Careful(nn.Module):
            def forward(self, x):
                x = F.dropout(F.relu(self.first(x)), 0.5, training=self.training)
                return self.last(x)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("x = F.dropout(x, 0.5)", "x = F.dropout(x, 0.5, training=self.training)"),
        (
            "x = F.dropout(\n            x,\n        )",
            "x = F.dropout(\n            x, training=self.training,\n        )",
        ),
        ("x = nn.Dropout(0.5)(x)", "x = nn.Dropout(0.5).train(self.training)(x)"),
    ],
)
def test_the_fix_passes_the_mode(line, after, fixed):
    assert fixed(PLAIN.format(line=line), CODE) == PLAIN.format(line=after)


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("x = F.dropout(x, 0.5, True)", "x = F.dropout(x, 0.5, self.training)"),
        ("x = F.dropout(x, training=True, p=0.1)", "x = F.dropout(x, training=self.training, p=0.1)"),
        ("x = torch.dropout(x, 0.5, train=True)", "x = torch.dropout(x, 0.5, train=self.training)"),
    ],
)
def test_who_wrote_true_is_asked(line, after, fixed):
    assert fixed(PLAIN.format(line=line), CODE) == PLAIN.format(line=line)
    assert fixed(PLAIN.format(line=line), CODE, unsafe=True) == PLAIN.format(line=after)


def test_a_function_passes_what_it_was_told(fixed):
    text = "def block(x, p, training):\n    return F.dropout(x, p)\n"
    assert fixed(text, CODE) == text.replace("F.dropout(x, p)", "F.dropout(x, p, training=training)")


def test_what_it_says(find):
    (found,) = find(PLAIN.format(line="x = F.dropout(x, 0.5)"), CODE)
    assert found.finding.message == "dropout() drops in eval mode too: training is True unless it is passed"
    assert found.finding.evidence == "Net.forward, line 12, runs in both modes"
    assert found.finding.severity.value == "error"
    assert not found.finding.inferred
