"""H603: forward() was called directly, past every hook."""

from __future__ import annotations

import pytest

CODE = "H603"
TRUE = {
    "script": """
        from torch import nn
        net = nn.Sequential(nn.Linear(2, 2))
        logits = net.forward(x)  # <- H603
        """,
    "by its name": "logits = model.forward(x)  # <- H603",
    "an attribute": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Linear(2, 2)
            def forward(self, x):
                return self.body.forward(x)  # <- H603
        """,
    "wrapped": """
        net = torch.nn.parallel.DistributedDataParallel(build())
        for x, y in loader:
            net.module.forward(x)  # <- H603
        """,
    "Lightning": """
        import lightning as L
        class Lit(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(2, 2)
            def training_step(self, batch, i):
                return self.net.forward(batch).sum()  # <- H603
        """,
    "trainer": """
        class Trainer:
            def __init__(self, model: nn.Module):
                self.model = model
            def step(self, x):
                return self.model.forward(x)  # <- H603
        """,
    "planted": """
        def make(kept):
            model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
            model.register_forward_hook(lambda *seen: kept.append(seen[2].detach()))
            return model
        model = make([])
        logits = model.forward(x)  # <- H603
        """,
}
SILENT = {
    "itself": """
        class Net(nn.Module):
            def forward(self, x):
                return x
            def predict(self, x):
                return self.forward(x).argmax(1)
        """,
    "called": "logits = model(x)",
    "the parent's": """
        class Net(nn.Linear):
            def forward(self, x):
                return super().forward(x) + nn.Linear.forward(self, x)
        """,
    "its own class": """
        class Net(nn.Module):
            def __call__(self, x):
                return self.forward(x)
        net = Net()
        net.forward(x)
        """,
    "recursion": """
        class Net(nn.Module):
            def forward(self, x):
                return self.forward(x[0]) if isinstance(x, list) else x
        """,
    "no module": """
        class Robot:
            def forward(self, steps): ...
        robot = Robot()
        robot.forward(3)
        ticket.forward(to)
        """,
    "autograd": """
        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * x
        Square.forward(None, x)
        """,
    "not called": "model.forward = torch.compile(model.forward)",
    "planted twin": "model = nn.Sequential(nn.Linear(4, 8))\nlogits = model(x)",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_the_fix_calls_the_module(fixed):
    text = "net = nn.Linear(2, 2)\ny = net.forward(x, mask=m)\n"
    assert fixed(text, CODE) == "net = nn.Linear(2, 2)\ny = net(x, mask=m)\n"


def test_what_was_told_from_a_name_is_mended_only_if_asked(fixed):
    assert fixed("model.forward(x)\n", CODE) == "model.forward(x)\n"
    assert fixed("model.forward(x)\n", CODE, unsafe=True) == "model(x)\n"


def test_what_it_says(find):
    (found,) = find(TRUE["planted"], CODE)
    assert found.finding.message == "model.forward() runs past the hooks of model"
    assert found.finding.evidence == "line 4: model.register_forward_hook"
    assert found.finding.severity.value == "warning"
