"""N302: a normalization layer has no running statistics and depends on the batch in eval mode too."""

from __future__ import annotations

from pathlib import Path

import pytest

CODE = "N302"
TRUE = {
    "a loop that freezes": """
        import torch.nn as nn
        def freeze_bn(model):
            for m in model.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.track_running_stats = False  # <- N302
                    m.requires_grad_(False)
        """,
    "statistics are removed": """
        from torch import nn
        net.trunk.requires_grad_(False)
        for m in net.trunk.modules():
            if isinstance(m, nn.BatchNorm1d):
                m.track_running_stats = False  # <- N302
                m.running_mean = m.running_var = None
        """,
    "one layer": """
        from torchvision.models import resnet18
        model = resnet18()
        model.bn1.track_running_stats = False  # <- N302
        """,
    "setattr": """
        class Trainer:
            def freeze(self):
                for m in self.model.modules():
                    if hasattr(m, "track_running_stats"):
                        setattr(m, "track_running_stats", False)  # <- N302
        """,
    "lightning": """
        import lightning as L
        class Net(L.LightningModule):
            def on_fit_start(self):
                self.backbone.requires_grad_(False)
                for name, layer in self.backbone.named_modules():
                    if "bn" in name:
                        layer.track_running_stats = False  # <- N302
        """,
    "built so in a frozen net": """
        from torch import nn
        trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False))  # <- N302
        for p in trunk.parameters():
            p.requires_grad = False
        """,
}
SILENT = {
    "eval": """
        import torch.nn as nn
        def freeze_bn(model):
            for m in model.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.eval()
                    m.requires_grad_(False)
        """,
    "switched on": """
        for m in model.modules():
            m.track_running_stats = True
        """,
    "handed on": """
        for m in model.modules():
            m.track_running_stats = track
        """,
    "a layer's own constructor": """
        from torch import nn
        class Norm(nn.Module):
            def __init__(self):
                super().__init__()
                self.track_running_stats = False
        """,
    "a configuration": """
        class Config:
            def __init__(self):
                self.x = 1
        config = Config()
        config.track_running_stats = False
        """,
    "instance norms have none": """
        from torch import nn
        norm = nn.InstanceNorm2d(8, track_running_stats=False)
        norm.requires_grad_(False)
        """,
    "few-shot, nothing is frozen": """
        from torch import nn
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
        """,
    "in eval mode as well": """
        from torch import nn
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
                m.track_running_stats = False
        """,
    "compared": """
        if m.track_running_stats == False:
            print(m)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


@pytest.mark.parametrize(
    ("name", "severity"),
    [("a loop that freezes", "warning"), ("one layer", "info"), ("built so in a frozen net", "info")],
)
def test_where_something_is_frozen_it_is_a_warning(name, severity, find):
    assert [each.finding.severity.value for each in find(TRUE[name], CODE)] == [severity]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "a loop that freezes",
            "track_running_stats = False freezes nothing: in train mode m normalizes with the batch",
        ),
        ("statistics are removed", "m loses its running statistics: it normalizes with the batch in eval mode too"),
    ],
)
def test_the_message_says_when_the_batch_is_used(name, message, find):
    assert [each.finding.message for each in find(TRUE[name], CODE)] == [message]


def test_the_fix_puts_the_layer_into_eval_mode(fixed):
    text = TRUE["a loop that freezes"]
    assert "            m.eval()  # <- N302\n" in fixed(text, CODE, unsafe=True)
    assert "m.eval()" not in fixed(text, CODE)


@pytest.mark.parametrize("name", ["one layer", "statistics are removed", "setattr"])
def test_no_fix_where_nothing_is_frozen_or_more_was_done(name, find):
    assert [each.fix for each in find(TRUE[name], CODE)] == [None]


def test_the_planted_loop_is_found_and_its_twin_is_not(find):
    text = Path(__file__).parents[3].joinpath("benchmarks/planted_loops/n302.py").read_text()
    assert [each.finding.line for each in find(text, CODE)] == [37]
