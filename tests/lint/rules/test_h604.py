"""H604: a statement has no effect: no_grad() without with, or a misspelt method."""

from __future__ import annotations

import json

import pytest

from frostline.findings import Safety, Severity
from frostline.lint.engine import lint
from frostline.lint.source import source_from_bytes

CODE = "H604"
TRUE = {
    "no_grad": "def test(model, x):\n    model.eval()\n    torch.no_grad()  # <- H604\n    return model(x)\n",
    "no_grad, not called": "torch.no_grad  # <- H604\ny = model(x)\n",
    "inference_mode, imported": "from torch import inference_mode\ninference_mode()  # <- H604\ny = model(x)\n",
    "enable_grad": "torch.enable_grad()  # <- H604\n",
    "autocast": "torch.cuda.amp.autocast()  # <- H604\ny = model(x)\n",
    "no_sync": "ddp_model.no_sync()  # <- H604\nloss.backward()\n",
    "a tutorial's typo": """
        net = torchvision.models.resnet50()
        for name, p in net.name_parameters():  # <- H604
            p.requires_grad = False
        """,
    "one parameter": "from torch import nn\nm = nn.Linear(2, 2)\nfor p in m.parameter():  # <- H604\n    print(p)\n",
    "singular": "for n, p in net.named_parameter():  # <- H604\n    print(n)\n",
    "gradients": """
        import torch
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for x in loader:
            opt.zero_grads()  # <- H604
            model(x).sum().backward()
            opt.step()
        """,
    "a trainer's": """
        class Trainer:
            def resume(self, checkpoint):
                self.model.load_state_dicts(checkpoint["model"])  # <- H604
                self.optimizer.load_statedict(checkpoint["optimizer"])  # <- H604
        """,
    "Lightning": """
        import lightning as L
        from torch import nn
        class Lit(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(2, 2)
            def on_fit_start(self):
                self.net.require_grad_(False)  # <- H604
        """,
    "whatever it is called": "for n, p in G.name_parameters():  # <- H604\n    print(n)\n",
    "not called": """
        for x in loader:
            optimizer.zero_grad  # <- H604
            model(x).sum().backward()
            optimizer.step  # <- H604
        scheduler.step  # <- H604
        """,
    "zero_grad, not called": "model.zero_grad  # <- H604\n",
    "backward, not called": "loss = criterion(model(x), y)\nloss.backward  # <- H604\n",
    "a method of one's own, not called": """
        from torch import nn
        class Net(nn.Module):
            def zero_grad(self, set_to_none=True):
                return super().zero_grad(set_to_none)
        net = Net()
        net.zero_grad  # <- H604
        """,
    "requires_grad_, not called": "model.backbone.requires_grad_  # <- H604\n" + "list(model.backbone.parameters())\n",
}
SILENT = {
    "of the mode, M204 speaks": "model.eval\nmodel.train\n",
    "with": "with torch.no_grad():\n    y = model(x)\n",
    "a decorator": "@torch.no_grad()\ndef test(x):\n    return model(x)\n",
    "what acts when it is called": "torch.set_grad_enabled(False)\ntorch.autograd.set_detect_anomaly(True)\n",
    "kept and entered": "context = torch.no_grad()\ncontext.__enter__()\n",
    "on a stack": "with ExitStack() as stack:\n    stack.enter_context(torch.no_grad())\n",
    "right names": """
        from torch import nn
        m = nn.Linear(2, 2)
        m.set_submodule("a", m)
        for p in m.parameters():
            p.grad = None
        m.get_parameter("weight")
        m.register_full_backward_pre_hook(print)
        """,
    "a method of one's own": """
        from torch import nn
        class Net(nn.Module):
            def name_parameters(self):
                return []
        Net().name_parameters()
        class Bag:
            def zero_grads(self):
                pass
        def f(optimizer):
            optimizer.zero_grads()
        """,
    "another framework": "import chainer\nmodel.zerograds()\noptimizer.zero_grads()\n",
    "another thing": "url.parameter()\ngrid.childrens()\nparser.register_buffers(x)\n",
    "an attribute": "device.cuda\nself.step\nargs.eval\n",
    "a property of one's own": """
        from torch import nn
        class Net(nn.Module):
            @property
            def half(self):
                return self.run()
        net = Net()
        net.half
        """,
    "called": "model.eval()\noptimizer.zero_grad()\nloss.backward()\noptimizer.step()\n",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_is_said(find):
    text = "net = torch.nn.Linear(2, 2)\nnet.name_parameters()\nnet.zero_grad\ntorch.no_grad()\n"
    misspelt, uncalled, context = (each.finding for each in find(text, CODE))
    assert misspelt.message == "net has no method 'name_parameters'"
    assert misspelt.evidence == "net is taken for a module"
    assert misspelt.remedy == "net.named_parameters"
    assert uncalled.message == "net.zero_grad is named, not called: nothing happens"
    assert context.message == "torch.no_grad without with has no effect: gradients are recorded as before"
    assert {each.severity for each in (misspelt, uncalled, context)} == {Severity.ERROR}


def test_a_certain_receiver_has_a_safe_fix(fixed):
    text = "net = torch.nn.Linear(2, 2)\nfor n, p in net.name_parameters():\n    print(n)\nnet.zero_grad\n"
    assert fixed(text, CODE) == text.replace("name_p", "named_p").replace("net.zero_grad", "net.zero_grad()")


@pytest.mark.parametrize(
    ("before", "after"),
    [("model.name_parameters()", "model.named_parameters()"), ("optimizer.zero_grad", "optimizer.zero_grad()")],
)
def test_a_guess_is_a_warning_with_an_unsafe_fix(before, after, find, fixed):
    text = f"def f(model, optimizer):\n    {before}\n"
    (found,) = find(text, CODE)
    assert (found.finding.severity, found.finding.inferred) == (Severity.WARNING, True)
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == f"def f(model, optimizer):\n    {after}\n"


def test_with_takes_in_the_rest_of_the_block(fixed):
    text = """def test(model, x):
    model.eval()
    torch.no_grad()  # no gradients
    y = [
        model(x),
    ]

    # all of it
    return y


test(model, x)
"""
    assert fixed(text, CODE) == text
    assert (
        fixed(text, CODE, unsafe=True)
        == """def test(model, x):
    model.eval()
    with torch.no_grad():  # no gradients
        y = [
            model(x),
        ]

        # all of it
        return y


test(model, x)
"""
    )


@pytest.mark.parametrize(
    "rest",
    ["", "x = '''\na\n'''\n", "def f():\n    pass\n", "import os\n"],
)
def test_what_is_more_than_indenting_has_no_fix(rest, find):
    (found,) = find(f"torch.no_grad()\n{rest}", CODE)
    assert found.fix is None


def test_the_flag_that_is_called_is_the_method(find):
    (found,) = find("net = torch.nn.Linear(2, 2)\nnet.requires_grad()\n", CODE)
    assert found.fix is not None
    assert found.fix.safety is Safety.SAFE
    assert found.finding.remedy == "net.requires_grad_"


def test_a_method_that_another_file_gives_the_class(find):
    files = {
        "nets.py": "from torch import nn\nclass Base(nn.Module):\n    def name_parameters(self):\n        return []\n"
    }
    text = "from nets import Base\nclass Net(Base):\n    pass\nnet = Net()\nnet.name_parameters()\n"
    assert find(text, CODE, files) == []


@pytest.mark.parametrize(("lines", "count"), [(["model.zero_grad"], 0), (["model.zero_grad\n", "print(1)"], 1)])
def test_the_last_line_of_a_notebook_s_cell_is_shown(lines, count):
    cells = [{"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": lines}]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    found, _ = lint(source_from_bytes(json.dumps(notebook).encode(), "train.ipynb"))
    assert [each.finding.code for each in found if each.finding.code == CODE] == [CODE] * count
