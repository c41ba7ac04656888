"""H601: layers are kept in a plain list or dict: torch does not see them."""

from __future__ import annotations

import pytest

CODE = "H601"
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n=3):
        super().__init__()
        {lines}

    def forward(self, x):
        return x
"""


def net(*lines: str) -> str:
    return NET.format(lines="\n        ".join(lines))


TRUE = {
    "comprehension": net("self.layers = [nn.Linear(8, 8) for _ in range(n)]  # <- H601"),
    "literal": net("self.layers = [nn.Linear(8, 8), nn.ReLU(), torch.nn.Linear(8, 1)]  # <- H601"),
    "tuple": net("self.layers = (nn.Linear(8, 8), nn.Linear(8, 1))  # <- H601"),
    "dict": net('self.heads = {"a": nn.Linear(8, 2), "b": nn.Linear(8, 3)}  # <- H601'),
    "dict()": net("self.heads = dict(a=nn.Linear(8, 2), b=nn.Linear(8, 3))  # <- H601"),
    "dict comprehension": net('self.heads = {f"h{i}": nn.Linear(8, 2) for i in range(n)}  # <- H601'),
    "appended": net("self.layers = []  # <- H601", "for i in range(n):", "    self.layers.append(nn.Linear(8, 8))"),
    "filled by key": net("self.heads = {}  # <- H601", "for i in range(n):", "    self.heads[i] = nn.Linear(8, 2)"),
    "added": net("self.layers = [nn.Linear(8, 8)]  # <- H601", "self.layers += [nn.Linear(8, 8), nn.Linear(8, 8)]"),
    "through a name": net(
        "layers = []", "for i in range(n):", "    layers.append(nn.Linear(8, 8))", "self.layers = layers  # <- H601"
    ),
    "repeated": net("self.layers = [nn.Linear(8, 8)] * 3  # <- H601", "self.layers.append(nn.Linear(8, 8))"),
    "parameters": net("self.weights = [nn.Parameter(torch.zeros(3)) for _ in range(n)]  # <- H601"),
    "dropout": net("self.drops = [nn.Dropout(p) for p in (0.1, 0.2)]  # <- H601"),
    "nested": net("self.blocks = [[nn.Linear(8, 8), nn.ReLU()], [nn.Linear(8, 8), nn.ReLU()]]  # <- H601"),
    "own class, annotated": """
        from torch import nn
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(2, 2)
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks: list[Block] = [Block() for _ in range(3)]  # <- H601
        """,
    "Lightning": """
        import lightning as L
        import torch
        class Lit(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.nets = [torch.nn.Linear(2, 2) for _ in range(5)]  # <- H601
        """,
    "base from elsewhere": """
        from mylib import Base
        from torch import nn
        class Net(Base):
            def __init__(self):
                super().__init__()
                self.layers = [nn.Linear(2, 2) for _ in range(5)]  # <- H601
            def forward(self, x):
                return x
        """,
    "planted": """
        class Listed(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Linear(4, 8)
                self.layers = [nn.Linear(8, 8) for _ in range(3)]  # <- H601
                self.head = nn.Linear(8, 3)
        class Registered(Listed):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList(self.layers)
        """,
}
SILENT = {
    "ModuleList": net("self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(n)])"),
    "registered later": net(
        "self.layers = [nn.Linear(8, 8) for _ in range(n)]", "self.net = nn.Sequential(*self.layers)"
    ),
    "registered by name": net(
        "self.layers = []",
        "for i in range(n):",
        "    layer = nn.Linear(8, 8)",
        "    self.add_module(str(i), layer)",
        "    self.layers.append(layer)",
    ),
    "setattr": net("self.layers = [nn.Linear(8, 8) for _ in range(n)]", "setattr(self, 'a', self.layers[0])"),
    "attributes": net("self.a = nn.Linear(2, 2)", "self.b = nn.Linear(2, 2)", "self.layers = [self.a, self.b]"),
    "a local list": net(
        "layers = [nn.Linear(8, 8), nn.ReLU()]", "self.net = nn.Sequential(*layers)", "self.n = layers"
    ),
    "hidden": net("self.teacher = [nn.Linear(8, 8)]"),
    "given": """
        class Net(nn.Module):
            def __init__(self, teacher, models):
                super().__init__()
                self.teacher = [teacher]
                self.models = list(models)
                self.all = [m for m in models]
        """,
    "frozen": net("self.teachers = [nn.Linear(8, 8).eval() for _ in range(n)]"),
    "losses": net("self.losses = [nn.L1Loss(), nn.MSELoss()]", "self.acts = {'relu': nn.ReLU(), 'tanh': nn.Tanh()}"),
    "numbers": net("self.widths = [8, 16]", "self.seen = []", "self.seen.append(n)"),
    "classes": net("self.kinds = [nn.Linear, nn.Conv2d]", "self.by_name = {'linear': nn.Linear}"),
    "no module": """
        class Ensemble:
            def __init__(self):
                self.nets = [nn.Linear(2, 2) for _ in range(5)]
        """,
    "a script": "layers = [nn.Linear(2, 2) for _ in range(5)]",
    "planted twin": """
        class Registered(Listed):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList(self.layers)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "self.layers = [nn.Linear(8, 8) for _ in range(n)]",
            "self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(n)])",
        ),
        ("self.layers = nn.Linear(8, 8), nn.ReLU()", "self.layers = nn.ModuleList([nn.Linear(8, 8), nn.ReLU()])"),
        ("self.layers = (nn.Linear(8, 8), nn.ReLU())", "self.layers = nn.ModuleList((nn.Linear(8, 8), nn.ReLU()))"),
        (
            'self.heads = {"a": nn.Linear(8, 2), "b": nn.Linear(8, 3)}',
            'self.heads = nn.ModuleDict({"a": nn.Linear(8, 2), "b": nn.Linear(8, 3)})',
        ),
        ("self.heads = dict(a=nn.Linear(8, 2))", "self.heads = nn.ModuleDict(dict(a=nn.Linear(8, 2)))"),
        (
            "self.w = [nn.Parameter(torch.zeros(3)) for _ in range(n)]",
            "self.w = nn.ParameterList([nn.Parameter(torch.zeros(3)) for _ in range(n)])",
        ),
        (
            "self.layers = []\n        for i in range(n): self.layers.append(nn.Linear(8, 8))",
            "self.layers = nn.ModuleList()\n        for i in range(n): self.layers.append(nn.Linear(8, 8))",
        ),
        (
            "layers = []\n        layers.append(nn.Linear(8, 8))\n        self.layers = layers",
            "layers = []\n        layers.append(nn.Linear(8, 8))\n        self.layers = nn.ModuleList(layers)",
        ),
    ],
)
def test_the_fix_wraps_it(before, after, fixed):
    assert fixed(net(before), CODE) == net(after)


def test_the_fix_spells_it_as_the_file_does(fixed):
    text = net("self.layers = [nn.Linear(8, 8) for _ in range(n)]").replace("from torch import nn\n", "")
    text = text.replace("nn.", "torch.nn.")
    assert "torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(n)])" in fixed(text, CODE)


@pytest.mark.parametrize(
    "lines",
    [
        ["self.heads = {0: nn.Linear(8, 2), 1: nn.Linear(8, 3)}"],
        ['self.heads = {"keys": nn.Linear(8, 2), "b": nn.Linear(8, 3)}'],
        ['self.heads = {"a.b": nn.Linear(8, 2), "b": nn.Linear(8, 3)}'],
        ["self.layers = [nn.Linear(8, 8) for _ in range(n)]", "self.layers.reverse()"],
        ["self.layers = [nn.Linear(8, 8) for _ in range(n)]", "both = self.layers + [1]"],
        ["self.layers = [nn.Linear(8, 8)] * 3"],
        ["self.layers = [[nn.Linear(8, 8)], [nn.Linear(8, 8)]]"],
        ["self.heads = {}", "for i in range(n):", "    self.heads[i] = nn.Linear(8, 2)"],
    ],
)
def test_no_fix_where_the_container_would_not_do(lines, find):
    assert [each.fix for each in find(net(*lines), CODE)] == [None]


def test_no_fix_before_the_module_is_made(find):
    text = net("self.a = 1").replace(
        "        super().__init__()",
        "        self.layers = [nn.Linear(8, 8) for _ in range(n)]\n        super().__init__()",
    )
    assert [each.fix for each in find(text, CODE)] == [None]


def test_what_it_says(find):
    (found,) = find(TRUE["appended"], CODE)
    assert found.finding.message == "self.layers is a plain list of layers: torch does not see them"
    assert found.finding.evidence == (
        "Net.parameters() and state_dict() do not list them; train(), eval() and to() do not reach them\n"
        "line 10 adds one"
    )
    (found,) = find(TRUE["base from elsewhere"], CODE)
    assert (found.finding.severity.value, found.finding.inferred) == ("warning", True)
