"""O402: the optimizer holds parameters that the model no longer has."""

from __future__ import annotations

import pytest

CODE = "O402"
START = """
import torch
from torch import nn, optim
from torchvision.models import resnet18
model = resnet18(weights="DEFAULT")
"""
LOOP = """
for epoch in range(10):
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
"""
SGD = "optimizer = optim.SGD(model.parameters(), lr=0.1)\n"
HEAD = "model.fc = nn.Linear(512, 10)"
MARKED = HEAD + "  # <- O402\n"
TRUE = {
    "script": START + SGD + MARKED + LOOP,
    "filter": START + "optimizer = optim.SGD(filter(lambda p: p.requires_grad, model.parameters()))\n" + MARKED + LOOP,
    "groups": START
    + "optimizer = optim.SGD([{'params': model.layer4.parameters()}, {'params': model.fc.parameters()}], lr=0.1)\n"
    + MARKED
    + LOOP,
    "a part of the head": START + SGD + "model.fc[1] = nn.Linear(512, 10)  # <- O402\n" + LOOP,
    "setattr": START + SGD + "setattr(model, 'fc', nn.Linear(512, 10))  # <- O402\n" + LOOP,
    "sequential": START + SGD + "model.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(512, 10))  # <- O402\n" + LOOP,
    "under a condition": START + SGD + "if args.classes != 1000:\n    " + MARKED + LOOP,
    "a function trains": START + SGD + MARKED + "train(model, optimizer, loader)\n",
    "another model, the old optimizer": START + SGD + LOOP + "model = resnet18()  # <- O402\n" + LOOP,
    "class": """
        import torch
        from torch import nn
        class Trainer:
            def __init__(self, model, classes):
                self.model = model
                self.optimizer = torch.optim.Adam(self.model.parameters())
                self.model.head = nn.Linear(768, classes)  # <- O402
            def fit(self, loader):
                for x, y in loader:
                    self.optimizer.zero_grad()
                    self.model(x, y).backward()
                    self.optimizer.step()
        """,
    "a module that optimizes itself": """
        import torch
        from torch import nn
        class Agent(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Linear(4, 4)
                self.optimizer = torch.optim.Adam(self.parameters())
                self.value = nn.Linear(4, 1)  # <- O402
            def learn(self, x):
                self.optimizer.zero_grad()
                self.value(self.body(x)).mean().backward()
                self.optimizer.step()
        """,
    "function": """
        import torch
        from torch import nn
        def build(classes):
            net = make()
            optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
            net.classifier = nn.Linear(10, classes)  # <- O402
            return net, optimizer
        """,
    "embeddings": """
        from transformers import AutoModelForCausalLM
        import torch
        model = AutoModelForCausalLM.from_pretrained("gpt2")
        optimizer = torch.optim.AdamW(model.parameters())
        model.resize_token_embeddings(len(tokenizer))  # <- O402
        for batch in loader:
            model(**batch).loss.backward()
            optimizer.step()
        """,
    "wrapped": """
        import torch
        from torch import nn
        model = nn.DataParallel(net)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.module.fc = nn.Linear(8, 3)  # <- O402
        for x, y in loader:
            criterion(model(x), y).backward()
            optimizer.step()
        """,
}
SILENT = {
    "the right order": START + HEAD + "\n" + SGD + LOOP,
    "made anew": START + SGD + LOOP + HEAD + "\n" + SGD + LOOP,
    "group added": START + SGD + HEAD + "\noptimizer.add_param_group({'params': model.fc.parameters()})\n" + LOOP,
    "no parameters": START + SGD + "model.fc = nn.Identity()\n" + LOOP,
    "behind training": START + SGD + LOOP + HEAD + "\ntorch.save(model, 'model.pt')\n",
    "frozen": START + SGD + "model.teacher = nn.Linear(2, 2)\nmodel.teacher.requires_grad_(False)\n" + LOOP,
    "another model": START + SGD + "other = resnet18()\nother.fc = nn.Linear(512, 3)\n" + LOOP,
    "one model per fold": """
        import torch
        for fold in range(5):
            model = make_model()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for x in loader:
                model(x).sum().backward()
                optimizer.step()
        """,
    "one net per round": """
        import torch
        from torch import nn
        for width in (8, 16):
            net = nn.Linear(width, 2)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            for x in loader:
                net(x).sum().backward()
                optimizer.step()
        """,
    "other branch": START
    + "if args.eval:\n    "
    + HEAD
    + "\nelse:\n    "
    + SGD.strip()
    + LOOP.replace("\n", "\n    ")
    + "\n",
    "a method that others follow": """
        import torch
        from torch import nn
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.make_optimizer()
            def make_optimizer(self):
                self.optimizer = torch.optim.Adam(self.model.parameters())
            def swap(self, classes):
                self.model.head = nn.Linear(768, classes)
                self.make_optimizer()
        """,
    "made elsewhere": START + SGD + HEAD + "\noptimizer = build_optimizer(model)\n" + LOOP,
    "to a device": START + SGD + "model = model.to('cuda')\n" + LOOP,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_through_a_function_of_another_file(check):
    text = """
        import torch
        from heads import replace
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        replace(model, 10)  # <- O402
        for x, y in loader:
            criterion(model(x), y).backward()
            optimizer.step()
        """
    heads = "from torch import nn\ndef replace(net, n):\n    net.fc = nn.Linear(512, n)\n"
    (found,) = check(text, CODE, {"heads.py": heads})
    assert found.finding.message == (
        "model.fc is made behind optimizer, which was made from the parameters before: the new ones never train"
    )
    assert found.finding.evidence.splitlines() == [
        "line 4 makes optimizer from model",
        "it stands at heads.py:3",
        "no group is added and no optimizer made behind it",
    ]


def test_the_fix_moves_the_optimizer(fixed):
    text = START + SGD + HEAD + "\n" + LOOP
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == START + HEAD + "\n" + SGD + LOOP


def test_the_optimizer_stays_where_something_in_between_needs_it(find):
    text = START + SGD + "scheduler = optim.lr_scheduler.StepLR(optimizer, 3)\n" + HEAD + "\n" + LOOP
    (found,) = find(text, CODE)
    assert found.fix is None
