"""F101: an attribute that looks like requires_grad but means nothing was set: nothing is frozen."""

from __future__ import annotations

import pytest

from frostline.findings import Safety, Severity

CODE = "F101"
TRUE = {
    "a tutorial's loop": """
        net = torchvision.models.resnet50(pretrained=True)
        for params in net.parameters():
            params.require_grad = False  # <- F101
        """,
    "named parameters, another case": """
        import torch
        def freeze(model):
            for name, p in model.named_parameters():
                if "fc" not in name:
                    p.requiresGrad = False  # <- F101
        """,
    "setattr": """
        for p in model.parameters():
            setattr(p, "requires_grads", False)  # <- F101
        """,
    "dunder": """
        for p in model.parameters():
            p.__setattr__("require_grad", False)  # <- F101
        """,
    "Lightning": """
        import lightning as L
        class Lit(L.LightningModule):
            def on_fit_start(self):
                for p in self.backbone.parameters():
                    p.requires_gradient = False  # <- F101
        """,
    "trainer, annotated": """
        class Trainer:
            def __init__(self, model):
                self.model = model
            def freeze(self):
                for p in self.model.encoder.parameters():
                    p.required_grad: bool = False  # <- F101
        """,
    "computed in place": """
        for name, p in model.named_parameters():
            p.require_grad &= "head" in name  # <- F101
        """,
    "a parameter of one's own": """
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(1))
                self.scale.require_grad = False  # <- F101
        """,
    "a module": """
        from torch import nn
        net = nn.Linear(2, 2)
        net.require_grad = False  # <- F101
        """,
    "a tensor": """
        import torch
        x = torch.rand(2)
        x.require_grad = True  # <- F101
        """,
    "something": "w.require_grad = True  # <- F101",
    "another framework's word": """
        for p in model.parameters():
            p.needs_grad = False  # <- F101
        """,
    "what the planted loop does": """
        import torch
        from torch import nn
        def make() -> nn.Sequential:
            return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
        model = make()
        for param in model[0].parameters():
            param.require_grad = False  # <- F101
        """,
}
SILENT = {
    "the flag": "for p in model.parameters():\n    p.requires_grad = False\n",
    "the method": "for p in model.parameters():\n    p.requires_grad_(False)\n",
    "settings": "args.require_grad = False\nself.cfg.require_grad = True\n",
    "an option of a class": """
        class Layer:
            def __init__(self, require_grad=True):
                self.require_grad = require_grad
        """,
    "an option of a module": """
        from torch import nn
        class Layer(nn.Module):
            def __init__(self):
                super().__init__()
                self.require_grad = True
            def forward(self, x):
                return x if self.require_grad else x.detach()
        layer = Layer()
        layer.require_grad = False
        """,
    "kept privately": """
        from torch import nn
        class Encoder(nn.Module):
            def _freeze_parameters(self):
                for param in self.parameters():
                    param.requires_grad = False
                self._requires_grad = False
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder = Encoder()
            def freeze(self):
                for param in self.encoder.parameters():
                    param.requires_grad = False
                self.encoder._requires_grad = False
        """,
    "read elsewhere in the file": "node.require_grad = True\nif node.require_grad:\n    walk(node)\n",
    "another word": "for p in model.parameters():\n    p.grad_scale = 0.1\n    p.no_weight_decay = True\n",
    "a function": "op.requires_grad_fn = backward\n",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_chained_assignments_are_found_one_by_one(find, fixed):
    text = "for a, b in zip(net.parameters(), ema_net.parameters()):\n    a.require_grad = b.require_grad = False\n"
    assert [(each.finding.line, each.finding.column) for each in find(text, CODE)] == [(2, 5), (2, 22)]
    assert fixed(text, CODE) == text.replace("require_grad", "requires_grad")


def test_a_parameter_is_an_error_with_a_safe_fix(find, fixed):
    text = "for p in model.parameters():\n    p.require_grad = False  # frozen\n"
    (found,) = find(text, CODE)
    assert found.finding.severity is Severity.ERROR
    assert found.finding.message == "'require_grad' means nothing to torch: requires_grad stays what it was"
    assert found.finding.evidence == "p is a parameter"
    assert found.finding.remedy == "p.requires_grad"
    assert fixed(text, CODE) == "for p in model.parameters():\n    p.requires_grad = False  # frozen\n"


def test_the_fix_is_unsafe_where_the_name_is_read(find):
    text = (
        "for p in net.parameters():\n    p.require_grad = False\nok = [p for p in net.parameters() if p.require_grad]\n"
    )
    (found,) = find(text, CODE)
    assert found.fix is not None
    assert found.fix.safety is Safety.UNSAFE


@pytest.mark.parametrize("line", ["x = torch.rand(2)\nx.require_grad = True\n", "w.require_grad = True\n"])
def test_a_tensor_is_a_warning_with_an_unsafe_fix(line, find, fixed):
    (found,) = find(line, CODE)
    assert found.finding.severity is Severity.WARNING
    assert found.finding.inferred
    assert fixed(line, CODE) == line
    assert fixed(line, CODE, unsafe=True) == line.replace("require_grad", "requires_grad")


def test_quotes_are_kept(fixed):
    text = "for p in model.parameters():\n    setattr(p, 'require_grad', False)\n"
    assert fixed(text, CODE) == "for p in model.parameters():\n    setattr(p, 'requires_grad', False)\n"


def test_a_module_gets_a_call(fixed):
    text = "net = torch.nn.Linear(2, 2)\nnet.require_grad = False\n"
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == "net = torch.nn.Linear(2, 2)\nnet.requires_grad_(False)\n"


def test_parameters_as_a_whole_have_no_fix(find):
    (found,) = find("params = list(model.parameters())\nparams.require_grad = False\n", CODE)
    assert found.finding.remedy == "for p in params: p.requires_grad"
    assert found.fix is None
