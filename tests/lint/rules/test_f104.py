"""F104: a generator of requires_grad_ calls was never consumed: nothing is frozen."""

from __future__ import annotations

import pytest

from frostline.findings import Severity

CODE = "F104"
TRUE = {
    "a generator": "(p.requires_grad_(False) for p in model.backbone.parameters())  # <- F104\n",
    "map": """
        def freeze_lazily(module):
            map(lambda p: p.requires_grad_(False), module.parameters())  # <- F104
        """,
    "map of a function": """
        def off(p):
            p.requires_grad = False
        class Trainer:
            def freeze(self):
                map(off, self.net.parameters())  # <- F104
        """,
    "thrown away under a name": "_ = (p.requires_grad_(False) for p in model.parameters())  # <- F104\n",
    "a name that nobody reads": """
        def freeze(model):
            frozen = map(lambda p: setattr(p, "requires_grad", False), model.parameters())  # <- F104
            return model
        """,
    "named parameters, with a test": """
        import lightning as L
        class Lit(L.LightningModule):
            def on_fit_start(self):
                (p.requires_grad_(False) for n, p in self.named_parameters() if "bn" in n)  # <- F104
        """,
    "a generator function": """
        def freeze(model):
            for p in model.parameters():
                p.requires_grad = False
                yield p
        freeze(model)  # <- F104
        """,
    "two loops": "(p.requires_grad_(False) for m in [model.a, model.b] for p in m.parameters())  # <- F104\n",
}
SILENT = {
    "a list": "[p.requires_grad_(False) for p in model.parameters()]\n",
    "made a list": "list(p.requires_grad_(False) for p in model.parameters())\n",
    "map, made a list": "list(map(lambda p: p.requires_grad_(False), model.parameters()))\n",
    "a loop": "for p in model.parameters():\n    p.requires_grad_(False)\n",
    "gone through later": "ps = (p.requires_grad_(False) for p in model.parameters())\nfor p in ps:\n    print(p)\n",
    "given on": "def f(model):\n    return (p.requires_grad_(False) for p in model.parameters())\n",
    "a generator of something else": "(p.numel() for p in model.parameters() if p.requires_grad)\n",
    "gone through in a loop": """
        def freeze(model):
            for p in model.parameters():
                p.requires_grad = False
                yield p
        for p in freeze(model):
            pass
        """,
    "a context": """
        import contextlib
        @contextlib.contextmanager
        def frozen(model):
            model.requires_grad_(False)
            yield
        frozen(model)
        """,
    "a map of one's own": "def map(f, xs):\n    [f(x) for x in xs]\nmap(lambda p: p.requires_grad_(False), ps)\n",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_is_said(find):
    (found,) = find("done = (p.requires_grad_(False) for p in model.parameters())\n", CODE)
    assert found.finding.severity is Severity.ERROR
    assert found.finding.message == "a generator of requires_grad_ calls is never consumed: no flag is set"
    assert found.finding.evidence == "done is read nowhere in the file"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "(p.requires_grad_(False) for p in model.parameters())",
            "for p in model.parameters():\n        p.requires_grad_(False)",
        ),
        (
            "map(lambda p: p.requires_grad_(False), model.parameters())",
            "for p in model.parameters():\n        p.requires_grad_(False)",
        ),
        (
            '_ = (p.requires_grad_(False) for n, p in model.named_parameters() if "bn" in n)',
            'for n, p in model.named_parameters():\n        if "bn" in n:\n            p.requires_grad_(False)',
        ),
    ],
)
def test_the_fix_is_a_loop(before, after, fixed):
    text = f"def freeze(model):\n    {before}  # why\n    return model\n"
    assert fixed(text, CODE) == f"def freeze(model):\n    {after}  # why\n    return model\n"


def test_it_is_unsafe_where_the_name_means_something_else(fixed):
    text = "p = 3\n(p.requires_grad_(False) for p in model.parameters())\nprint(p)\n"
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) != text


@pytest.mark.parametrize(
    "text",
    [
        "if done: (p.requires_grad_(False) for p in model.parameters())\n",
        "(p.requires_grad_(False) for p in model.parameters()); x = 1\n",
        "(\n    p.requires_grad_(False)  # all\n    for p in model.parameters()\n)\n",
        "(p.requires_grad_(False) for m in model.children() for p in m.parameters())\n",
    ],
)
def test_more_than_a_line_has_no_fix(text, find):
    (found,) = find(text, CODE)
    assert found.fix is None
