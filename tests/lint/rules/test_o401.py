"""O401: parameters that were unfrozen later are in no optimizer."""

from __future__ import annotations

import pytest

CODE = "O401"
TRAIN = """
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
"""
SCRIPT = """
import torch
from torch import nn, optim
from torchvision.models import resnet18
model = resnet18(weights="DEFAULT")
model.fc = nn.Linear(512, 10)
for p in model.layer4.parameters():
    p.requires_grad = False
optimizer = {made}
for epoch in range(20):
    if epoch == 5:
{thaw}
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
"""
FILTER = "optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), lr=0.1)"
LOOP = "        for p in model.layer4.parameters():\n            p.requires_grad = True"
MARKED = LOOP + "  # <- O401"
TRUE = {
    "filter, loop, scheduled": SCRIPT.format(made=FILTER, thaw=MARKED),
    "list": SCRIPT.format(made="optim.Adam([p for p in model.parameters() if p.requires_grad])", thaw=MARKED),
    "method": SCRIPT.format(made=FILTER, thaw="        model.layer4.requires_grad_(True)  # <- O401"),
    "another part alone": SCRIPT.format(made="optim.SGD(model.fc.parameters(), lr=0.1)", thaw=MARKED),
    "a group with another part": SCRIPT.format(
        made="optim.SGD([{'params': model.fc.parameters()}], lr=0.1)", thaw=MARKED
    ),
    "a layer of it": SCRIPT.format(made=FILTER, thaw="        model.layer4[1].requires_grad_(True)  # <- O401"),
    "all of the model, of which it has the head": """
        import torch
        for p in model.parameters():
            p.requires_grad = False
        for p in model.fc.parameters():
            p.requires_grad = True
        optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
        train(model, optimizer, 5)
        for p in model.parameters():
            p.requires_grad = True  # <- O401
        train(model, optimizer, 10)
        """,
    "trainer": """
        import torch
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.model.backbone.requires_grad_(False)
                params = [p for p in self.model.parameters() if p.requires_grad]
                self.optimizer = torch.optim.AdamW(params, lr=1e-3)
            def fit(self, loader):
                for epoch in range(10):
                    if epoch > 3:
                        self.thaw()
                    for x, y in loader:
                        self.optimizer.zero_grad()
                        self.model(x, y).backward()
                        self.optimizer.step()
            def thaw(self):
                self.model.backbone.requires_grad_(True)  # <- O401
        """,
    "lightning": """
        import lightning as L
        import torch
        from torch import nn
        class Net(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.backbone = nn.Linear(4, 4)
                self.head = nn.Linear(4, 2)
                for p in self.backbone.parameters():
                    p.requires_grad = False
            def configure_optimizers(self):
                return torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()))
            def on_train_epoch_start(self):
                if self.current_epoch == 5:
                    for p in self.backbone.parameters():
                        p.requires_grad = True  # <- O401
        """,
    "in parallel": """
        import torch
        from torch.nn.parallel import DistributedDataParallel as DDP
        net.encoder.requires_grad_(False)
        model = DDP(net)
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
        for epoch in range(9):
            if epoch == 2:
                model.module.encoder.requires_grad_(True)  # <- O401
            model(x).sum().backward()
            optimizer.step()
        """,
}
HELPER = """
def set_trainable(module, flag):
    for p in module.parameters():
        p.requires_grad = flag
def trainable(m):
    return [p for p in m.parameters() if p.requires_grad]
"""
SILENT = {
    "group added": SCRIPT.format(
        made=FILTER, thaw=LOOP + '\n        optimizer.add_param_group({"params": model.layer4.parameters()})'
    ),
    "group added before": SCRIPT.format(
        made=FILTER, thaw='        optimizer.add_param_group({"params": model.layer4.parameters()})\n' + LOOP
    ),
    "group appended": SCRIPT.format(
        made=FILTER, thaw=LOOP + '\n        optimizer.param_groups.append({"params": list(model.layer4.parameters())})'
    ),
    "made anew": SCRIPT.format(made=FILTER, thaw=LOOP + f"\n        optimizer = {FILTER}"),
    "made anew elsewhere": SCRIPT.format(made=FILTER, thaw=LOOP + "\n        optimizer = make_optimizer(model)"),
    "all given": SCRIPT.format(made="optim.SGD(model.parameters(), lr=0.1)", thaw=MARKED.partition("  #")[0]),
    "filter by name that has it": SCRIPT.format(
        made="optim.SGD([p for n, p in model.named_parameters() if 'layer4' in n], lr=0.1)", thaw=LOOP
    ),
    "unfrozen before": """
        model.trunk.requires_grad_(False)
        model.trunk.requires_grad_(True)
        optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()))
        train(model, optimizer)
        """,
    "a function that may add them": SCRIPT.format(
        made=FILTER, thaw=LOOP + "\n        add_params(optimizer, model.layer4)"
    ),
    "trained no more": """
        model.trunk.requires_grad_(False)
        optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()))
        for x in loader:
            model(x).sum().backward()
            optimizer.step()
        model.trunk.requires_grad_(True)
        torch.save(model.state_dict(), "model.pt")
        """,
    "two nets that take turns": """
        opt_d = torch.optim.Adam(net.critic.parameters())
        opt_g = torch.optim.Adam(net.generator.parameters())
        for x in loader:
            net.critic.requires_grad_(True)
            net.critic(x).mean().backward()
            opt_d.step()
            net.critic.requires_grad_(False)
            net.critic(net.generator(z)).mean().backward()
            opt_g.step()
        """,
    "the other one's optimizer is made elsewhere": """
        def train(net, opt_d, loader):
            opt_g = torch.optim.Adam(net.generator.parameters())
            for x in loader:
                net.critic.requires_grad_(False)
                net.critic(net.generator(z)).mean().backward()
                opt_g.step()
                net.critic.requires_grad_(True)
                net.critic(x).mean().backward()
                opt_d.step()
        """,
    "another branch": """
        model.trunk.requires_grad_(False)
        if args.probe:
            optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()))
        else:
            model.trunk.requires_grad_(True)
            optimizer = torch.optim.SGD(model.parameters())
        train(model, optimizer)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_through_helpers_of_another_file(check, find):
    text = """
        import torch
        from tools import set_trainable, trainable
        set_trainable(model.trunk, False)
        optimizer = torch.optim.SGD(trainable(model), lr=0.1)
        for epoch in range(3):
            if epoch == 1:
                set_trainable(model.trunk, True)  # <- O401
            model(x).sum().backward()
            optimizer.step()
        """
    (found,) = check(text, CODE, {"tools.py": HELPER})
    assert (
        found.finding.message
        == "what is unfrozen in model.trunk is in no optimizer: it gets gradients and never trains"
    )
    assert found.finding.evidence.splitlines() == [
        "line 5 makes optimizer over what was trainable then",
        "line 4 had frozen it before",
        "it stands at tools.py:4",
    ]
    assert found.fix is None
    again = text.replace("set_trainable(model.trunk, True)", "set_trainable(model.trunk, False)")
    assert find(again, CODE, {"tools.py": HELPER}) == []


def test_the_fix_adds_the_group(fixed):
    text = SCRIPT.format(made=FILTER, thaw=LOOP)
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == text.replace(
        LOOP, LOOP + '\n        optimizer.add_param_group({"params": model.layer4.parameters()})'
    )
