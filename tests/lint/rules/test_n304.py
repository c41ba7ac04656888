"""N304: averaged weights were used with statistics that do not belong to them."""

from __future__ import annotations

import pytest

CODE = "N304"
SCRIPT = """
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

net = {net}
swa = AveragedModel(net{options})
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for epoch in range(3):
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    swa.update_parameters(net)
{then}
"""
WITH = "nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))"
USE = "swa.eval()\nswa(x)"


def script(then: str = USE, net: str = WITH, options: str = "") -> str:
    return SCRIPT.format(then=then, net=net, options=options)


TRUE = {
    "used": script("swa.eval()\nswa(x)  # <- N304"),
    "saved": script('torch.save(swa.state_dict(), "swa.pth")  # <- N304'),
    "evaluated elsewhere": script("print(evaluate(swa, loader))  # <- N304"),
    "of a library": script("swa.eval()\nswa(x)  # <- N304", net="torchvision.models.resnet50()"),
    "unknown": script("swa.eval()\nswa(x)  # <- N304", net="build()"),
    "moving": script("swa(x)  # <- N304", options=", multi_avg_fn=get_ema_multi_avg_fn(0.999)"),
    "in functions": """
        from torch.optim import swa_utils
        def fit(model, ema, loader):
            for x in loader:
                model(x)
                ema.update_parameters(model)
        def main(loader):
            model = torchvision.models.resnet18()
            ema = swa_utils.AveragedModel(model)
            fit(model, ema, loader)
            ema.eval()
            return ema(next(iter(loader)))  # <- N304
        """,
    "trainer": """
        from torch.optim.swa_utils import AveragedModel
        class Trainer:
            def __init__(self):
                self.net = torchvision.models.resnet18()
                self.swa = AveragedModel(self.net)
            def fit(self, loader):
                for x in loader:
                    self.net(x).sum().backward()
                    self.swa.update_parameters(self.net)
                self.validate(loader)
            def validate(self, loader):
                self.swa.eval()
                for x in loader:
                    self.swa(x)  # <- N304
        """,
}
TRUE["planted"] = """
    from torch.optim.swa_utils import AveragedModel, update_bn
    def make() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    def fit(net: nn.Module, swa: AveragedModel, batches) -> None:
        for x, y in batches:
            net(x)
            swa.update_parameters(net)
    def failing():
        net = make()
        swa = AveragedModel(net)
        fit(net, swa, data())
        swa.eval()
        with torch.no_grad():
            swa(torch.randn(16, 4)).argmax(1)  # <- N304
    def twin():
        net = make()
        swa = AveragedModel(net)
        batches = data()
        fit(net, swa, batches)
        update_bn(batches, swa)
        swa.eval()
        with torch.no_grad():
            swa(torch.randn(16, 4)).argmax(1)
    """
SILENT = {
    "statistics estimated": script(f"update_bn(loader, swa)\n{USE}"),
    "by hand": script("swa.train()\nfor x in loader:\n    swa(x)\nswa.eval()\nswa(x)"),
    "by another function": script(f"refresh(loader, swa)\n{USE}"),
    "by a function for it": script(f"bn_update(loader, swa)\n{USE}"),
    "buffers averaged": script(options=", use_buffers=True"),
    "perhaps averaged": script(options=", use_buffers=args.buffers"),
    "no batch norm": script(net="nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))"),
    "a transformer": script(net='timm.create_model("vit_base_patch16_224")'),
    "never filled": script().replace("    swa.update_parameters(net)\n", ""),
    "never used": script("pass"),
    "used before": "swa = AveragedModel(net)\nswa(x)\nswa.update_parameters(net)",
    "by another method": """
        from torch.optim.swa_utils import AveragedModel, update_bn
        class Trainer:
            def __init__(self, net):
                self.net, self.swa = net, AveragedModel(net)
            def fit(self, loader):
                for x in loader:
                    self.swa.update_parameters(self.net)
                self.swa(x)
            def finish(self, loader):
                update_bn(loader, self.swa)
        """,
    "by its caller": """
        def average(model, loader, swa):
            for x in loader:
                swa.update_parameters(model)
            return swa(x)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


@pytest.mark.parametrize(
    ("name", "severity", "inferred"),
    [("used", "error", False), ("unknown", "warning", True), ("moving", "info", False)],
)
def test_how_bad_it_is(name, severity, inferred, find):
    (found,) = find(TRUE[name], CODE)
    assert (found.finding.severity.value, found.finding.inferred) == (severity, inferred)


def test_what_it_says(find):
    (found,) = find(TRUE["used"], CODE)
    assert found.finding.message == "swa is used with the statistics of the last weights, not of its average"
    assert found.finding.evidence == (
        "line 7 makes it, line 14 averages into it\n"
        "no update_bn comes between: running statistics are copied, not averaged"
    )
