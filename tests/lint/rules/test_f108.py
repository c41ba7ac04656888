"""F108: what was frozen is made trainable again later."""

from __future__ import annotations

from pathlib import Path

import pytest

CODE = "F108"
HELPERS = """
    def set_requires_grad(net, flag=False):
        for p in net.parameters():
            p.requires_grad = flag
    def unfreeze(net):
        for p in net.parameters():
            p.requires_grad = True
    """
TRUE = {
    "script": """
        import torch
        for p in model.backbone.parameters():
            p.requires_grad = False
        for k, v in model.named_parameters():
            v.requires_grad = True  # <- F108
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        """,
    "method of a module": """
        import torch
        from torchvision.models import resnet18
        net = resnet18()
        net.layer1.requires_grad_(False)
        net.requires_grad_(True)  # <- F108
        for x in loader:
            net(x).mean().backward()
        """,
    "frozen under a condition": """
        import torch
        def main(args, model, loader):
            if args.freeze:
                for p in model.encoder.parameters():
                    p.requires_grad = False
            for p in model.parameters():
                p.requires_grad = True  # <- F108
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            train(model, optimizer, loader)
        """,
    "trainer": """
        import torch
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.freeze()
                for p in self.model.parameters():
                    p.requires_grad = True  # <- F108
                self.optimizer = torch.optim.Adam(self.model.parameters())
            def freeze(self):
                for p in self.model.backbone.parameters():
                    p.requires_grad = False
            def step(self, batch):
                self.model(batch).backward()
                self.optimizer.step()
        """,
    "lightning": """
        import lightning as L
        import torch
        class Net(L.LightningModule):
            def __init__(self, backbone):
                super().__init__()
                self.backbone = backbone
                self.backbone.requires_grad_(False)
                self.head = torch.nn.Linear(8, 2)
                for p in self.parameters():
                    p.requires_grad = True  # <- F108
            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters())
        """,
}
SILENT = {
    "the other way round": """
        import torch
        for p in model.parameters():
            p.requires_grad = True
        for p in model.backbone.parameters():
            p.requires_grad = False
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        """,
    "all frozen, head thawed": """
        import torch
        for p in model.parameters():
            p.requires_grad = False
        for p in model.fc.parameters():
            p.requires_grad = True
        optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
        """,
    "a schedule": """
        def fit(model, optimizer, loader):
            model.backbone.requires_grad_(False)
            for epoch in range(10):
                if epoch == 5:
                    model.backbone.requires_grad_(True)
                for x in loader:
                    model(x).backward()
                    optimizer.step()
        """,
    "two stages": """
        def main(model, optimizer, loader):
            model.backbone.requires_grad_(False)
            run(model, optimizer, loader)
            model.requires_grad_(True)
            run(model, optimizer, loader)
        """,
    "one or the other": """
        import torch
        if args.freeze:
            model.backbone.requires_grad_(False)
        else:
            model.backbone.requires_grad_(True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        """,
    "a method for a later stage": """
        import torch
        class Net(torch.nn.Module):
            def __init__(self, backbone):
                super().__init__()
                self.backbone = backbone
                self.backbone.requires_grad_(False)
            def finetune(self, loader):
                self.backbone.requires_grad_(True)
                optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        """,
    "frozen again": """
        def iteration(net_d, net_g, x, opt):
            net_d.requires_grad_(False)
            net_d.requires_grad_(True)
            net_d.requires_grad_(False)
            net_d(net_g(x)).mean().backward()
            opt.step()
        """,
    "in turn": """
        def iteration(net_d, net_g, x, opt, opt_d):
            net_d.requires_grad_(False)
            net_d(net_g(x)).mean().backward()
            opt.step()
            net_d.requires_grad_(True)
            net_d(x).mean().backward()
            opt_d.step()
        """,
    "nothing trains": """
        def reset(model):
            model.requires_grad_(False)
            model.requires_grad_(True)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_helpers_of_another_file_with_their_flags(check):
    text = """
        import torch
        from helpers import set_requires_grad
        set_requires_grad(model.backbone)
        set_requires_grad(model, True)  # <- F108
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        """
    assert check(text, CODE, {"helpers.py": HELPERS})


def test_a_helper_that_says_what_it_does_is_meant(find):
    text = """
        import torch
        from helpers import set_requires_grad, unfreeze
        set_requires_grad(model.backbone)
        unfreeze(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        """
    assert find(text, CODE, {"helpers.py": HELPERS}) == []


def test_the_message_names_both_lines(find):
    [found] = find(TRUE["script"], CODE)
    assert found.finding.message == ("model.backbone, frozen at line 4, is made trainable again with all of model")
    assert found.finding.evidence.splitlines() == [
        "line 4 freezes model.backbone",
        "line 6 sets requires_grad of model to True: the last one wins",
    ]
    assert (found.finding.severity.value, found.fix) == ("error", None)


def test_what_a_constructor_froze_and_a_program_thaws_is_a_warning(find):
    text = """
        import torch
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.trunk = nn.Linear(4, 4)
                self.trunk.requires_grad_(False)
        net = Net()
        net.requires_grad_(True)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        """
    assert [(each.finding.line, each.finding.severity.value) for each in find(text, CODE)] == [(10, "warning")]


def test_the_planted_loop_is_found_and_its_twin_is_not(find):
    text = Path(__file__).parents[3].joinpath("benchmarks/planted_loops/f108.py").read_text()
    assert [each.finding.line for each in find(text, CODE)] == [37]
