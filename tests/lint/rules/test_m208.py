"""M208: a network that only gives targets runs in train mode."""

from __future__ import annotations

import pytest

CODE = "M208"
SCRIPT = """
import torch, torchvision
student = torchvision.models.resnet18()
teacher = torchvision.models.resnet50()
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
for x, y in loader:
    with torch.no_grad():
        target = teacher(x)
    loss = distance(student(x), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
MODULE = """
import frostline, torch, torchvision
from torch import nn
class Distilled(nn.Module):
    def __init__(self):
        super().__init__()
        self.teacher = torchvision.models.resnet50()
        self.student = torchvision.models.resnet18()
    def training_step(self, x):
        with torch.no_grad():
            target = self.teacher(x)
        return distance(self.student(x), target)
class Trainer:
    def fit(self, module, loader):
        optimizer = torch.optim.Adam(module.student.parameters())
        for x in loader:
            module.train()
            loss = module.training_step(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
m = Distilled()
Trainer().fit(m, loader)
"""
MADE = "self.teacher = torchvision.models.resnet50()"
FOUND = MODULE.replace("self.teacher(x)", "self.teacher(x)  # <- M208")
TRUE = {
    "part of a module that is put into train mode": FOUND,
    "eval() where it is made is undone": FOUND.replace(MADE, f"{MADE}\n        self.teacher.eval()"),
    "another part is held": FOUND.replace("m = Distilled()", 'm = Distilled()\nfrostline.freeze(m, "student")'),
    "held without its mode": FOUND.replace(
        "m = Distilled()", 'm = Distilled()\nfrostline.freeze(m, "teacher", level="grad")'
    ),
    "another model is held": SCRIPT.replace("for x, y", "frostline.freeze(other)\nfor x, y").replace(
        "teacher(x)", "teacher(x)  # <- M208"
    ),
    "script": SCRIPT.replace("teacher(x)", "teacher(x)  # <- M208"),
    "detached": SCRIPT.replace("target = teacher(x)", "target = teacher(x).detach()  # <- M208").replace(
        "with torch.no_grad():", "if True:"
    ),
    "functions": """
        import torch
        from torch import nn
        def make(width):
            return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU())
        def distil(student, teacher):
            optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
            for x in batches:
                with torch.no_grad():
                    target = teacher(x).softmax(1)  # <- M208
                optimizer.zero_grad()
                nn.functional.cross_entropy(student(x), target).backward()
                optimizer.step()
        def main():
            student, teacher = make(8), make(16)
            distil(student, teacher)
        """,
    "put into train mode": SCRIPT.replace("for x, y", "teacher.train()\nfor x, y").replace(
        "teacher(x)", "teacher(x)  # <- M208"
    ),
    "reference policy": """
        import copy, timm, torch
        policy = timm.create_model("resnet18")
        ref_model = copy.deepcopy(policy)
        for x in prompts:
            with torch.no_grad():
                reference = ref_model(x)  # <- M208
            loss = kl(policy(x), reference)
            loss.backward()
            optimizer.step()
        """,
    "trainer": """
        import torch, torchvision
        class Distiller:
            def __init__(self, student):
                self.student = student
                self.teacher = torchvision.models.resnet50()
            def fit(self, loader):
                for x in loader:
                    self.optimizer.zero_grad()
                    with torch.inference_mode():
                        soft = self.teacher(x)  # <- M208
                    kl(self.student(x), soft).backward()
                    self.optimizer.step()
        """,
    "part of a module": """
        import torch, torchvision
        from torch import nn
        class Distilled(nn.Module):
            def __init__(self):
                super().__init__()
                self.teacher = torchvision.models.resnet50()
                self.student = torchvision.models.resnet18()
            def forward(self, x):
                with torch.no_grad():
                    target = self.teacher(x)  # <- M208
                return distance(self.student(x), target)
        """,
}
SILENT = {
    "held by its name": MODULE.replace("m = Distilled()", 'm = Distilled()\nfrostline.freeze(m, "teacher")'),
    "held by a pattern": MODULE.replace("m = Distilled()", 'm = Distilled()\nfrostline.freeze(m, "teacher.*")'),
    "held by a selector that is not told": MODULE.replace(
        "m = Distilled()", "m = Distilled()\nfrostline.freeze(m, part)"
    ),
    "held where it is made": MODULE.replace(MADE, f"{MADE}\n        frostline.freeze(self.teacher)"),
    "held in a script": SCRIPT.replace("for x, y", "import frostline\nfrostline.freeze(teacher)\nfor x, y"),
    "held in a block": SCRIPT.replace(
        "for x, y", "from frostline import frozen\nwith frozen(teacher):\n  for x, y"
    ).replace("\n    ", "\n      "),
    "eval() after every train()": MODULE.replace("module.train()", "module.train(); module.teacher.eval()"),
    "eval() and nothing calls train()": MODULE.replace(MADE, f"{MADE}\n        self.teacher.eval()").replace(
        "module.train()", "pass"
    ),
    "eval() and train() is overridden": MODULE.replace(MADE, f"{MADE}\n        self.teacher.eval()").replace(
        "    def training_step",
        "    def train(self, mode=True):\n        super().train(mode)\n        self.teacher.eval()\n"
        "    def training_step",
    ),
    "eval() and a function that nobody knows sees to modes": "from modes import set_bn_eval\n"
    + MODULE.replace(MADE, f"{MADE}\n        self.teacher.eval()").replace(
        "module.train()", "module.train(); set_bn_eval(module)"
    ),
    "eval() and only the other part is put into train mode": MODULE.replace(
        MADE, f"{MADE}\n        self.teacher.eval()"
    ).replace("module.train()", "module.student.train()"),
    "eval() in the pass itself": MODULE.replace(
        "        with torch.no_grad():\n            target",
        "        self.teacher.eval()\n        with torch.no_grad():\n            target",
    ),
    "eval() in a Lightning module": "import lightning as L\n"
    + MODULE.replace(MADE, f"{MADE}\n        self.teacher.eval()").replace("nn.Module", "L.LightningModule"),
    "twin": SCRIPT.replace("for x, y", "teacher.eval()\nfor x, y"),
    "chained": SCRIPT.replace("resnet50()", "resnet50().eval()"),
    "given by the caller": """
        def distil(student, teacher, loader):
            for x in loader:
                with torch.no_grad():
                    target = teacher(x)
                distance(student(x), target).backward()
                optimizer.step()
        """,
    "comes in eval mode": SCRIPT.replace(
        "torchvision.models.resnet50()", "transformers.AutoModel.from_pretrained('bert-base-uncased')"
    ),
    "no layer that the mode changes": SCRIPT.replace(
        "torchvision.models.resnet50()", "torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())"
    ),
    "perceptual loss without dropout": SCRIPT.replace("resnet50()", "vgg16().features[:16].eval()").replace(
        "teacher", "vgg"
    ),
    "made ready by a function nobody knows": SCRIPT.replace("for x, y", "make_ready(teacher)\nfor x, y"),
    "it trains too": SCRIPT.replace("with torch.no_grad():", "if True:"),
    "a plain name": SCRIPT.replace("teacher", "other"),
    "only evaluated": """
        teacher = torchvision.models.resnet50()
        with torch.no_grad():
            for x in loader:
                teacher(x)
        """,
    "its mode is handled by the class": """
        import torch, torchvision
        from torch import nn
        class Distilled(nn.Module):
            def __init__(self):
                super().__init__()
                self.teacher = torchvision.models.resnet50()
                self.student = torchvision.models.resnet18()
            def train(self, mode=True):
                super().train(mode)
                self.teacher.eval()
                return self
            def forward(self, x):
                with torch.no_grad():
                    target = self.teacher(x)
                return distance(self.student(x), target)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_it_says_where_it_is_made_and_what_moves(check):
    (found,) = check(TRUE["script"], CODE)
    assert found.finding.message == "teacher only gives targets, and runs in train mode"
    assert found.finding.evidence == (
        "line 4 makes it: a module that is made is in train mode; eval() is never called on it\n"
        "it has layers with running statistics, which move with every pass"
    )
    assert found.finding.severity.value == "warning"


def test_one_that_follows_another_is_an_info(find):
    text = SCRIPT.replace("teacher", "encoder_k").replace("resnet50()", "resnet18()")
    (found,) = find(text, CODE)
    assert found.finding.severity.value == "info"
    assert found.finding.evidence.endswith("it follows another network: train mode may be meant")


def test_the_fix_calls_eval_where_it_is_made_and_is_unsafe(fixed):
    assert fixed(SCRIPT, CODE) == SCRIPT
    assert fixed(SCRIPT, CODE, unsafe=True) == SCRIPT.replace("resnet50()\n", "resnet50()\nteacher.eval()\n")


def test_the_fix_for_a_part_of_a_module_survives_train(find):
    remedy = (
        "frostline.freeze(self.teacher) where it is made: it stays in eval mode, whoever calls train(); or a train() "
        "of the class that calls self.teacher.eval() after super().train(mode)"
    )
    (found,) = find(MODULE, CODE)
    assert found.finding.remedy == remedy
    (found,) = find(TRUE["eval() where it is made is undone"], CODE)
    assert found.finding.remedy == remedy
    assert found.finding.evidence.startswith(
        "line 8 puts it into eval mode\nline 18 calls train() on the module that it is a part of, which undoes that"
    )
