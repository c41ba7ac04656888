"""What is in one file: names, classes with what they inherit, parameters of functions, and statements."""

from __future__ import annotations

import ast

import pytest

from frostline.lint.module_walk import plain_path


def kinds(view, text: str, files: dict[str, str] | None = None) -> dict[str, str]:
    """By name, what the names that stand alone as a statement are: ``kind class path``."""
    seen = view(text, files)
    found = {}
    for node in seen.nodes(ast.Expr):
        value = seen.value(node.value)
        if isinstance(node.value, (ast.Name, ast.Attribute, ast.Subscript)):
            told = "" if value is None else f"{value.kind} {value.cls} {value.path}{'' if value.sure else ' ?'}"
            found[seen.text(node)] = " ".join(told.split())
    return found


ANNOTATIONS = {
    "nn.Module": "module torch.nn.Module m",
    "'nn.Module'": "module torch.nn.Module m",
    "torch.nn.Linear": "module torch.nn.Linear m",
    "Optional[nn.Module]": "module torch.nn.Module m",
    "nn.Module | None": "module torch.nn.Module m",
    "None | nn.Module": "module torch.nn.Module m",
    "'nn.Module | None'": "module torch.nn.Module m",
    "nn.Parameter": "parameter torch.nn.Parameter m",
    "torch.Tensor": "tensor torch.Tensor m",
    "torch.optim.Optimizer": "optimizer torch.optim.Optimizer m",
    "torch.optim.lr_scheduler.LRScheduler": "scheduler torch.optim.lr_scheduler.LRScheduler m",
    "Iterable[nn.Parameter]": "parameters m",
    "list[nn.Parameter]": "parameters m",
    "Sequence[nn.Module]": "modules m",
    "Net": "module train.Net m",
    "Plain": "object train.Plain m",
    "int": "",
    "'not python ('": "",
    "dict[str, nn.Module]": "",
}


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_parameters_are_what_they_are_annotated_as(view, annotation):
    head = "import torch\nfrom torch import nn\nfrom typing import Optional, Iterable, Sequence\n"
    head += "class Net(nn.Module): pass\nclass Plain: pass\n"
    assert kinds(view, f"{head}def f(m: {annotation}):\n    m\n") == {"m": ANNOTATIONS[annotation]}


def test_hints_uses_and_names_that_hide_them(view):
    text = """
    def f(model, thing, other, opt=None, *args, **model2):
        model; thing; other; opt; args; model2
        thing.named_parameters()
    """
    assert kinds(view, text) == {
        "model": "module model ?",
        "thing": "module thing",
        "other": "",
        "opt": "optimizer opt ?",
        "args": "",
        "model2": "",
    }


def test_imports_under_other_names(view):
    text = """
    import torch as t, torch.nn as layers, torch.optim
    from torch.nn import functional, Linear as Lin
    from torch.nn.modules.batchnorm import BatchNorm2d
    from . import local
    from .sub import thing
    t.nn; layers.Linear; torch.optim; functional.relu; Lin; BatchNorm2d; local; thing
    """
    assert kinds(view, text) == {
        "t.nn": "ref torch.nn",
        "layers.Linear": "ref torch.nn.Linear",
        "torch.optim": "ref torch.optim",
        "functional.relu": "ref torch.nn.functional.relu",
        "Lin": "ref torch.nn.Linear",
        "BatchNorm2d": "ref torch.nn.BatchNorm2d",
        "local": "ref local",
        "thing": "ref sub.thing",
    }


CLASSES = """
from torch import nn, optim
class Base(nn.Module):
    shared = nn.ReLU()
    def __init__(self, other):
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.given = other
        self.opt = optim.SGD(self.body.parameters())
    def build(self):
        self.late = nn.Dropout()
class Net(Base):
    def __init__(self):
        super().__init__(1)
        self.head = nn.Conv2d(1, 1, 1)
    def forward(self, x):
        self; self.body; self.head; self.opt; self.late; self.shared; self.given; self.unknown
"""


def test_attributes_are_what_constructors_set_also_of_bases(view):
    assert kinds(view, CLASSES) == {
        "self": "module train.Net self",
        "self.body": "module torch.nn.Linear self.body",
        "self.head": "module torch.nn.Conv2d self.head",
        "self.opt": "optimizer torch.optim.SGD self.opt",
        "self.late": "module torch.nn.Dropout self.late",
        "self.shared": "module torch.nn.ReLU self.shared",
        "self.given": "unknown self.given ?",
        "self.unknown": "unknown self.unknown ?",
    }


def test_attributes_of_an_object_of_another_file(view):
    text = "from nets import Net\nn = Net()\nn; n.body; n.head; n.opt\n"
    assert kinds(view, text, {"nets.py": CLASSES}) == {
        "n": "module nets.Net n",
        "n.body": "module torch.nn.Linear n.body",
        "n.head": "module torch.nn.Conv2d n.head",
        "n.opt": "optimizer torch.optim.SGD n.opt",
    }


@pytest.mark.parametrize(
    ("bases", "told"),
    [
        ("nn.Module", True),
        ("nn.Linear", True),
        ("L.LightningModule", True),
        ("Net", True),
        ("Mixin, Net", True),
        ("Generic[T], nn.Module", True),
        ("Mixin", False),
        ("", False),
        ("object", False),
        ("somewhere.Thing", None),
        ("Mixin, somewhere.Thing", None),
        ("A", None),
        ("make()", None),
    ],
)
def test_whether_a_class_is_a_module(view, bases, told):
    text = f"""
import lightning as L, somewhere
from torch import nn
from typing import Generic
class Mixin: pass
class Net(nn.Module): pass
class A({bases}): pass
"""
    assert view(text).walk.is_module("train.A") is told


def test_a_class_of_which_a_base_is_unknown_is_taken_for_a_module_if_it_has_a_pass(view):
    text = "from x import Base\nclass A(Base):\n    def forward(self, x): pass\n    def f(self): self\n"
    assert kinds(view, text) == {"self": "module train.A self ?"}
    assert kinds(view, text.replace("forward", "other")) == {"self": "object train.A self ?"}


def test_methods_are_found_through_bases(view):
    walk = view(CLASSES).walk
    for name, owner in {"build": "Base.build", "forward": "Net.forward", "__init__": "Net.__init__"}.items():
        found = walk.method("train.Net", name)
        assert found is not None
        assert found[1].name == owner
    assert walk.method("train.Net", "nowhere") is None
    assert list(walk.methods_of("Base")) == ["Base.__init__", "Base.build"]
    assert walk.methods_of("Nowhere") == {}
    assert [owner.name for _, owner in walk.ancestry("train.Net")] == ["Net", "Base"]


def test_a_class_of_itself(view):
    walk = view("class A(A): pass\nclass B(C): pass\nclass C(B): pass\n").walk
    assert [walk.is_module(f"train.{name}") for name in "ABC"] == [None, None, None]
    assert walk.ancestry("train.B")[0][1].name == "B"


def test_lightning_modules(view):
    walk = view(
        "import pytorch_lightning as pl\nclass A(pl.LightningModule): pass\nclass B(A): pass\nclass C: pass\n"
    ).walk
    assert [walk.is_lightning(f"train.{name}") for name in "ABC"] == [True, True, False]


def test_what_both_branches_know_is_known_behind_them(view):
    text = """
    from torch import nn
    net = nn.Linear(1, 1)
    if x:
        a = nn.Linear(1, 1); b = nn.ReLU(); c = nn.ReLU(); net = nn.Dropout()
    else:
        a = nn.Conv2d(1, 1, 1); b = 3
    a; b; c; net
    if y:
        d = nn.ReLU()
    d
    if 0:
        e = nn.ReLU()
    e
    """
    assert kinds(view, text) == {
        "a": "module torch.nn.Linear a",
        "b": "",
        "c": "module torch.nn.ReLU c",
        "net": "module torch.nn.Dropout net",
        "d": "module torch.nn.ReLU d",
        "e": "",
    }


def test_a_loop_without_a_break_and_its_targets(view):
    text = """
    model = nn.Linear(1, 1)
    for n, p in model.named_parameters(): n; p
    for i, m in enumerate(model.children()): i; m
    for (a, b), c in zip([(1, 2)], model.parameters()): a; c
    for x in [model]: x
    """
    assert kinds(view, text) == {
        "n": "name model",
        "p": "parameter model.*",
        "i": "",
        "m": "module model.*",
        "a": "const a",
        "c": "parameter model.*",
        "x": "module .*",
    }


@pytest.mark.parametrize(
    ("test", "arms"),
    [
        ("__name__ == '__main__'", [()]),
        ("__name__ != '__main__'", [(True,), (False,)]),
        ("True", [()]),
        ("False", [()]),
        ("not False", [()]),
        ("x", [(True,), (False,)]),
    ],
)
def test_branches_that_are_decided(view, test, arms):
    (flow,) = view(f"if {test}:\n    model.eval()\nelse:\n    model.train()\n").flows
    assert [tuple(c.arm for c in event.conditions) for event in flow.events] == arms


@pytest.mark.parametrize(
    ("context", "off"),
    [
        ("torch.no_grad()", True),
        ("torch.inference_mode()", True),
        ("torch.inference_mode(True)", True),
        ("torch.inference_mode(False)", False),
        ("torch.inference_mode(mode=False)", False),
        ("torch.set_grad_enabled(False)", True),
        ("torch.set_grad_enabled(mode=False)", True),
        ("torch.set_grad_enabled(True)", False),
        ("torch.set_grad_enabled(x)", False),
        ("torch.enable_grad()", False),
        ("open(x), torch.no_grad()", True),
    ],
)
def test_where_gradients_are_off(view, context, off):
    (flow,) = view(f"with {context}:\n    model.eval()\nmodel.train()\n").flows
    assert [event.no_grad for event in flow.events if event.what == "mode"] == [off, False]
    if "," not in context:
        flows = view(f"@{context}\ndef f(model): model.eval()\n").flows
        assert [event.no_grad for flow in flows for event in flow.events] == [off]


def test_what_is_behind_continue_is_done_to_the_others(view):
    text = "for n, p in model.named_parameters():\n    if 'fc' in n: continue\n    p.requires_grad = False\n"
    (flow,) = view(text).flows
    assert [(event.what, [c.arm for c in event.conditions], event.whole) for event in flow.events] == [
        ("flag", [False], False)
    ]


def test_functions_inside_of_functions_know_the_names_around_them(view):
    text = """
    def outer(model):
        net = model.body
        def inner():
            net.eval()
        inner()
    outer(m)
    """
    (flow,) = view(text).flows
    assert [event.path for event in flow.events] == ["m.body"]


def test_a_walk_can_be_forgotten(view):
    walk = view(CLASSES).walk
    walk.forget()
    assert (walk.functions, walk.values, walk.events, walk.tree.body) == ({}, {}, [], [])


def test_plain_paths():
    texts = {"a": "a", "a.b.c": "a.b.c", "a[0].b": "", "f().a": "", "1": ""}
    assert {text: plain_path(ast.parse(text, mode="eval").body) for text in texts} == texts
