"""F106: eval() was taken for freezing: the weights train."""

from __future__ import annotations

from pathlib import Path

import pytest

CODE = "F106"
TRUE = {
    "script": """
        import torch
        from torchvision.models import resnet18
        model = resnet18()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train()
        model.layer1.eval()  # <- F106
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        """,
    "function": """
        import torch
        def train(model, loader, criterion):
            optimizer = torch.optim.Adam(model.parameters())
            for epoch in range(3):
                model.train()
                model.backbone.eval()  # <- F106
                for x, y in loader:
                    criterion(model(x), y).backward()
                    optimizer.step()
        """,
    "two nets": """
        import torch
        def main(encoder, decoder, loader):
            opt = torch.optim.Adam(list(encoder.parameters()) + list(decoder.parameters()), lr=1e-3)
            encoder.eval()  # <- F106
            decoder.train()
            for x in loader:
                loss = decoder(encoder(x)).mean()
                loss.backward()
                opt.step()
        """,
    "trainer": """
        import torch
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.model.encoder.eval()  # <- F106
                self.optimizer = torch.optim.AdamW(self.model.parameters())
            def epoch(self, loader):
                for batch in loader:
                    self.optimizer.zero_grad()
                    self.model(batch).backward()
                    self.optimizer.step()
        """,
    "groups": """
        import torch
        from torch import nn
        trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        head = nn.Linear(8, 2)
        optimizer = torch.optim.SGD([{"params": trunk.parameters(), "lr": 1e-3}, {"params": head.parameters()}], lr=0.1)
        head.train()
        trunk.train(False)  # <- F106
        for x, y in loader:
            criterion(head(trunk(x)), y).backward()
            optimizer.step()
        """,
}
SILENT = {
    "frozen too": TRUE["script"].replace("eval()  # <- F106", "eval()\n        model.layer1.requires_grad_(False)"),
    "whole model": TRUE["script"].replace("model.layer1.eval()  # <- F106", "model.eval()"),
    "train comes later": TRUE["script"].replace("eval()  # <- F106", "eval()\n        model.train()"),
    "the layers alone": """
        import torch
        def train(model, loader):
            optimizer = torch.optim.Adam(model.parameters())
            model.train()
            for m in model.modules():
                if isinstance(m, torch.nn.BatchNorm2d):
                    m.eval()
            model.bn1.eval()
            for x in loader:
                model(x).backward()
                optimizer.step()
        """,
    "not in the optimizer": """
        import torch
        def main(encoder, decoder, loader):
            opt = torch.optim.Adam(decoder.parameters(), lr=1e-3)
            encoder.eval()
            for x in loader:
                decoder(encoder(x)).mean().backward()
                opt.step()
        """,
    "run without gradients": """
        import torch
        def main(encoder, decoder, loader):
            opt = torch.optim.Adam(list(encoder.parameters()) + list(decoder.parameters()), lr=1e-3)
            encoder.eval()
            decoder.train()
            for x in loader:
                with torch.no_grad():
                    h = encoder(x)
                decoder(h).mean().backward()
                opt.step()
        """,
    "both in eval mode": """
        import torch
        def main(encoder, decoder, loader):
            opt = torch.optim.Adam(list(encoder.parameters()) + list(decoder.parameters()), lr=1e-3)
            encoder.eval()
            decoder.eval()
            for x in loader:
                decoder(encoder(x)).mean().backward()
                opt.step()
        """,
    "only measured": """
        def test(model, loader):
            model.eval()
            for x in loader:
                model(x)
        """,
    "frozen by somebody else": """
        import torch
        from mylib import freeze_params
        def train(model, loader, criterion):
            optimizer = torch.optim.Adam(model.parameters())
            model.train()
            model.backbone.eval()
            freeze_params(model.backbone)
            for x, y in loader:
                criterion(model(x), y).backward()
                optimizer.step()
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_the_message_and_what_is_evidence(find):
    [found] = find(TRUE["function"], CODE)
    assert found.finding.message == "eval() does not freeze: model.backbone goes on training"
    assert found.finding.evidence.splitlines() == [
        "line 4 gives its parameters to the optimizer",
        "line 10 steps while model.backbone is in eval mode; no line switches requires_grad off",
    ]
    assert (found.finding.severity.value, found.finding.inferred) == ("warning", True)


def test_a_call_that_does_nothing_at_all_is_an_error(find):
    text = TRUE["groups"].replace("nn.BatchNorm2d(8)", "nn.GroupNorm(2, 8)")
    assert [each.finding.severity.value for each in find(text, CODE)] == ["error"]


def test_the_fix_switches_the_flag_off(fixed):
    text = TRUE["function"].replace("  # <- F106", "")
    assert "\n        model.backbone.eval()\n        model.backbone.requires_grad_(False)\n" in fixed(
        text, CODE, unsafe=True
    )
    assert "requires_grad" not in fixed(text, CODE)


def test_the_planted_loop_is_found_and_its_twin_is_not(find):
    text = Path(__file__).parents[3].joinpath("benchmarks/planted_loops/f106.py").read_text()
    assert [each.finding.line for each in find(text, CODE)] == [34]
