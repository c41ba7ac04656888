"""T702: a functional call is given parameters and no buffers: those of the real module move."""

from __future__ import annotations

import pytest

from frostline.findings import Severity

CODE = "T702"
MAML = """
import torch
from torch import nn
from torch.func import functional_call
def inner(x, y, criterion):
    model = nn.Sequential(nn.Linear(4, 8), nn.{norm}(8))
    {mode}
    adapted = {first}
    for _ in range(2):
        loss = criterion(functional_call(model, {given}, (x,)), y){mark}
        grads = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
        adapted = {{n: p - 0.1 * g for (n, p), g in zip(adapted.items(), grads)}}
"""
MARK = "  # <- T702"
PARAMETERS = "dict(model.named_parameters())"
TRUE = {
    "maml": MAML.format(norm="BatchNorm1d", mode="", first=PARAMETERS, given="adapted", mark=MARK),
    "in train mode": MAML.format(
        norm="BatchNorm1d", mode="model.train()", first=PARAMETERS, given="adapted", mark=MARK
    ),
    "copies": MAML.format(
        norm="BatchNorm1d",
        mode="",
        first="{n: p.clone() for n, p in model.named_parameters()}",
        given="adapted",
        mark=MARK,
    ),
    "spread": MAML.format(norm="BatchNorm1d", mode="", first=PARAMETERS, given="{**adapted}", mark=MARK),
    "in a tuple": MAML.format(norm="BatchNorm1d", mode="", first=PARAMETERS, given="(adapted,)", mark=MARK),
    "at once": """
        import torch
        net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        out = torch.func.functional_call(net, dict(net.named_parameters()), x)  # <- T702
        """,
    "stateless": """
        from collections import OrderedDict
        from torch.nn.utils import stateless
        def run(model, x):
            params = OrderedDict(model.named_parameters())
            params = update(params, x)
            return stateless.functional_call(model, params, x)  # <- T702
        """,
    "a class": """
        import torch
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.bn = nn.BatchNorm2d(3)
        class Learner:
            def __init__(self):
                self.net = Net()
            def adapt(self, x):
                params = dict(self.net.named_parameters())
                return torch.func.functional_call(self.net, params, (x,))  # <- T702
        """,
}
SILENT = {
    "eval mode": MAML.format(norm="BatchNorm1d", mode="model.eval()", first=PARAMETERS, given="adapted", mark=""),
    "no batch norm": MAML.format(norm="LayerNorm", mode="", first=PARAMETERS, given="adapted", mark=""),
    "merged": MAML.format(
        norm="BatchNorm1d",
        mode="buffers = dict(model.named_buffers())",
        first=PARAMETERS,
        given="{**adapted, **buffers}",
        mark="",
    ),
    "a tuple": MAML.format(
        norm="BatchNorm1d",
        mode="buffers = dict(model.named_buffers())",
        first=PARAMETERS,
        given="(adapted, buffers)",
        mark="",
    ),
    "state_dict": MAML.format(norm="BatchNorm1d", mode="", first="model.state_dict()", given="adapted", mark=""),
    "buffers put in": """
        from torch.func import functional_call
        def run(model, x):
            state = dict(model.named_parameters())
            state.update(model.named_buffers())
            return functional_call(model, state, (x,))
        """,
    "stacked": """
        from torch.func import functional_call, stack_module_state, vmap
        params, buffers = stack_module_state(models)
        def one(params, buffers, x):
            return functional_call(base, (params, buffers), (x,))
        """,
    "given from outside": """
        from torch.func import functional_call
        def run(model, params, x):
            return functional_call(model, params, (x,))
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_the_fix_passes_copies_of_the_buffers(fixed):
    text = MAML.format(norm="BatchNorm1d", mode="model.train()", first=PARAMETERS, given="adapted", mark="")
    after = "functional_call(model, {**adapted, **{n: b.clone() for n, b in model.named_buffers()}}, (x,))"
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == text.replace("functional_call(model, adapted, (x,))", after)


def test_what_is_said(find):
    (found,) = find(TRUE["maml"], CODE)
    assert found.finding.message == (
        "functional_call gets parameters of model and no buffers: in train mode it moves those of model itself"
    )
    assert found.finding.evidence == "adapted holds what named_parameters() gives\nmodel has batch normalization"
    assert found.finding.severity is Severity.WARNING
    (unseen,) = find(TRUE["stateless"], CODE)
    assert (unseen.finding.severity, unseen.finding.inferred) == (Severity.INFO, True)
