"""What assignments and calls do, whatever they are written on."""

from __future__ import annotations

import pytest


def events(view, text: str) -> list[str]:
    """``what path value`` of what a script does."""
    (flow,) = [flow for flow in view(text).flows if flow.name == "<module>"]
    return [
        " ".join(str(part) for part in (e.what, e.path, e.data.get("value", "-")) if part not in ("", "-"))
        for e in flow.events
    ]


ASSIGNMENTS = {
    "p.requires_grad = False": ["flag p False"],
    "model.fc.weight.requires_grad = True": ["flag model.fc.weight True"],
    "model.fc.weight.requires_grad = unknown": ["flag model.fc.weight None"],
    # On a module it does nothing, which is a mistake of its own.
    "model.requires_grad = False": [],
    "setattr(p, 'requires_grad', False)": ["flag p False"],
    "setattr(model, 'requires_grad', False)": [],
    "setattr(p, name, False)": [],
    "model.training = False": ["mode model False"],
    "p.data = x": [],
    "model.fc.weight.data = x": ["write model.fc.weight"],
    "p.grad = None": ["grad_set p"],
    "for p in model.parameters(): p.requires_grad = False": ["flag model.* False"],
    "for n, p in model.named_parameters(): p.requires_grad = 'fc' in n": ["flag model.* None"],
    "for m in (model.a, model.b):\n    for p in m.parameters(): p.requires_grad_(False)": [
        *("flag model.a False", "flag model.b False")
    ],
    "for m in (model.a, model.b): m.eval()": ["mode model.a False", "mode model.b False"],
    "for p in [*model.a.parameters(), *model.b.parameters()]: p.requires_grad = False": [
        *("flag model.a False", "flag model.b False")
    ],
    "a = b = model.fc\na.requires_grad_(False)\nb.eval()": ["flag model.fc False", "mode model.fc False"],
    "a, b = model.x, model.y\na.eval(); b.train()": ["mode model.x False", "mode model.y True"],
}


@pytest.mark.parametrize("text", ASSIGNMENTS)
def test_what_is_assigned(view, text):
    found = [each for each in events(view, text) if not each.startswith("grad_set")]
    assert found == [each for each in ASSIGNMENTS[text] if not each.startswith("grad_set")]


def test_a_gradient_that_is_set(view):
    assert events(view, "p.grad = None")[0].startswith("grad_set p")


CALLS = {
    "model(x)": ["forward model"],
    "model.fc(x)": ["forward model.fc"],
    "model.forward(x)": ["forward model"],
    "thing(model)": ["unknown"],
    "thing(x)": [],
    "things[0](model)": ["unknown"],
    "(lambda m: m.eval())(model)": ["unknown"],
    # What is never gone through does nothing.
    "(p.requires_grad_(False) for p in model.parameters())": [],
    "list(p.requires_grad_(False) for p in model.parameters())": ["flag model.* False"],
    "[p.requires_grad_(False) for p in model.parameters()]": ["flag model.* False"],
    "f = lambda: model.eval()": [],
    "x = model.eval() if y else model.train()": ["mode model False", "mode model True"],
    "assert model.eval()": ["mode model False"],
    "with open(model.eval()): pass": ["mode model False", "unknown"],
    "del model.eval().x": ["mode model False"],
    "f'{model.eval()}'": ["mode model False"],
    "try:\n    model.eval()\nexcept E:\n    model.train()\nfinally:\n    model.cpu()": [
        *("mode model False", "move model", "mode model True")
    ],
    "while model.eval(): model.train()\nelse: model.cpu()": ["mode model False", "mode model True", "move model"],
    "match model.eval():\n    case 1: model.train()": ["mode model False", "mode model True"],
    "nn.Linear(2, 2).eval()": ["mode False"],
    "net = nn.Linear(2, 2).eval()": ["mode net False"],
}


@pytest.mark.parametrize("text", CALLS)
def test_what_is_called(view, text):
    found = [each for each in events(view, text) if not each.startswith("new ")]
    assert found == CALLS[text]


def test_the_branches_of_a_conditional_expression(view):
    (flow,) = view("x = model.eval() if y else model.train()\n").flows
    assert [(event.get("value"), event.conditions[0].arm) for event in flow.events] == [(False, True), (True, False)]
