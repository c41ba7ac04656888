"""What code does from its start to its end, with what it calls put in its place."""

from __future__ import annotations

import pytest

from frostline.lint import expansion, flows


def told(view, text: str, files: dict[str, str] | None = None) -> dict[str, list[str]]:
    """By flow: ``what path`` of its events."""
    return {flow.name: [f"{e.what} {e.path}".rstrip() for e in flow.events] for flow in view(text, files).flows}


def script(view, text: str, files: dict[str, str] | None = None) -> list[str]:
    return told(view, text, files)["<module>"]


TRAINER = """
from torch import nn, optim
class Trainer:
    def __init__(self, net, loader):
        self.net = net
        self.body = net.body
        self.opt = optim.SGD(self.net.parameters(), lr=0.1)
        self.loader = loader
    def fit(self):
        self.prepare()
        for x in self.loader:
            self.step(x)
    def prepare(self):
        self.body.eval()
    def step(self, x):
        self.net(x).sum().backward()
        self.opt.step()
"""
DONE = ["mode net.body", "forward net", "backward", "step t.opt"]


def test_an_object_does_things_to_what_it_was_given(view):
    text = TRAINER + "net = nn.Linear(2, 2)\nt = Trainer(net, loader)\nt.fit()\n"
    assert script(view, text) == ["new net", "optimizer t.opt", *DONE]
    (flow,) = [flow for flow in view(text).flows if flow.name == "<module>"]
    step = flow.events[-1]
    assert (step.line, step.function, step.via) == (17, "Trainer.step", ("Trainer.fit:20", "Trainer.step:12"))
    assert [loop.line for loop in step.loops] == [11]
    assert [source.path for source in flow.events[1].get("sources")] == ["net"]


def test_objects_are_told_apart_and_one_without_a_name_has_its_class(view):
    text = (
        TRAINER + "one = Trainer(a_net, loader)\nother = Trainer(b_net, loader)\nother.fit()\nTrainer(net, l).fit()\n"
    )
    assert script(view, text) == [
        *("optimizer one.opt", "optimizer other.opt", "mode b_net.body", "forward b_net", "backward", "step other.opt"),
        *("optimizer Trainer().opt", "mode net.body", "forward net", "backward", "step Trainer().opt"),
    ]


def test_a_method_that_nobody_calls_comes_behind_the_constructor(view):
    assert told(view, TRAINER)["Trainer.fit"] == [
        *("optimizer self.opt", "mode net.body", "forward net", "backward", "step self.opt")
    ]


def test_a_method_of_a_lightning_module_comes_behind_what_runs_before_it(view):
    text = """
    import lightning as L
    class Lit(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 2)
        def configure_optimizers(self):
            return optim.Adam(self.net.parameters())
        def training_step(self, x, i):
            self.log(self.net(x))
        def on_train_start(self):
            self.net.eval()
        def setup(self, stage):
            self.net.requires_grad_(False)
    """
    flows_of = told(view, text)
    assert flows_of["Lit.training_step"] == [
        *("new self.net", "optimizer <return>", "flag self.net", "mode self.net", "forward self.net")
    ]
    assert flows_of["Lit.configure_optimizers"] == ["new self.net", "optimizer <return>"]


HELPER = """
def set_parameter_requires_grad(model, feature_extracting, verbose=False):
    if feature_extracting:
        for param in model.parameters():
            param.requires_grad = False
    if not verbose:
        model.eval()
    else:
        model.train()
"""


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        ("set_parameter_requires_grad(net, True)", ["flag net.*", "mode net eval"]),
        ("set_parameter_requires_grad(net, False)", ["mode net eval"]),
        ("set_parameter_requires_grad(net, feature_extracting=True, verbose=1)", ["flag net.*", "mode net train"]),
        ("set_parameter_requires_grad(net.fc, option)", ["flag net.fc.* if", "mode net.fc eval"]),
        ("set_parameter_requires_grad(verbose=True, model=net, feature_extracting=0)", ["mode net train"]),
    ],
)
def test_literal_arguments_decide_branches(view, call, wanted):
    for text, files in ((HELPER + call, None), (f"from helpers import *\n{call}", {"helpers.py": HELPER})):
        (flow,) = [each for each in view(text, files).flows if each.name == "<module>"]
        seen = [
            f"{e.what} {e.path}"
            + ({True: " train", False: " eval"}[e.get("value")] if e.what == "mode" else "")
            + " if" * len(e.conditions)
            for e in flow.events
        ]
        assert seen == wanted


def test_literal_arguments_are_passed_on(view):
    text = """
    def inner(m, hard):
        if hard: m.eval()
        else: m.train()
    def outer(m, hard=True): inner(m, hard)
    outer(net)
    outer(net, False)
    """
    (flow,) = [flow for flow in view(text).flows if flow.name == "<module>"]
    assert [event.get("value") for event in flow.events] == [False, True]


def test_a_flag_that_is_an_argument_is_what_the_call_gives(view):
    text = """
    def set_grad(m, on):
        for p in m.parameters(): p.requires_grad = on
        m.train(on)
    set_grad(net, False)
    set_grad(net, unknown)
    def other(m): set_grad(m, on=True)
    """
    by_name = {flow.name: [event.get("value") for event in flow.events] for flow in view(text).flows}
    assert by_name == {"<module>": [False, False, None, None], "other": [True, True]}


def test_what_happens_in_another_file_is_placed_at_the_call(view):
    files = {"helpers.py": "def freeze(m):\n    for p in m.parameters():\n        p.requires_grad_(False)\n"}
    seen = view("import helpers\nnet = nn.Linear(2, 2)\nif x:\n    helpers.freeze(net.body)\n", files)
    (flow,) = [flow for flow in seen.flows if flow.name == "<module>"]
    event = flow.events[-1]
    assert (event.what, event.path, event.line, event.origin) == ("flag", "net.body.*", 4, "helpers.py:3")
    assert seen.text(event.node) == "helpers.freeze(net.body)"
    assert [condition.arm for condition in event.conditions] == [True]
    assert [(loop.line, loop.node) for loop in event.loops] == [(2, None)]


def test_names_inside_of_a_function_are_not_those_of_its_caller(view):
    text = """
    def build():
        net = nn.Linear(2, 2)
        net.eval()
        return net
    net = nn.Linear(3, 3)
    other = build()
    """
    # That something new has its name now is told once more, behind what the function did.
    assert script(view, text) == ["new net", "new other", "mode other", "new other"]
    assert script(view, text.replace("return net", "pass")) == ["new net", "new build():net", "mode build():net"]


def test_what_a_function_returns_has_the_name_that_its_caller_gives(view):
    text = """
    def build(lr):
        model = torchvision.models.resnet18()
        for p in model.parameters(): p.requires_grad = False
        opt = optim.SGD(model.parameters(), lr)
        return model, opt
    net, optimizer = build(1)
    net(x).backward()
    optimizer.step()
    """
    assert script(view, text) == [
        *("new net", "flag net.*", "optimizer optimizer", "forward net", "backward", "step optimizer")
    ]


def test_gradients_that_are_off_around_a_call_are_off_inside(view):
    text = """
    def f(m): m.eval()
    @torch.no_grad()
    def g(m): f(m)
    with torch.no_grad(): f(net)
    g(net)
    f(net)
    """
    (flow,) = [flow for flow in view(text).flows if flow.name == "<module>"]
    assert [event.no_grad for event in flow.events] == [True, True, False]


def test_a_function_that_calls_itself_comes_to_an_end(view):
    text = "def f(m):\n    m.eval()\n    f(m.child)\nf(net)\n"
    assert script(view, text) == ["mode net"]


def test_functions_that_only_call_each_other_are_in_a_flow(view):
    text = "def a(m):\n    m.eval()\n    b(m)\ndef b(m):\n    m.train()\n    a(m)\n"
    assert told(view, text) == {"<module>": [], "a": ["mode m", "mode m", "mode m"]}


def test_a_chain_that_is_too_deep_to_be_put_in_place_goes_on_in_a_flow_of_its_own(view):
    text = "".join(f"def f{i}(m):\n    m.l{i}.eval()\n    f{i + 1}(m)\n" for i in range(20)) + "def f20(m): m.eval()\n"
    seen = told(view, text)
    assert seen["f0"] == [f"mode m.l{i}" for i in range(expansion._DEEPEST + 1)]
    assert {event for events in seen.values() for event in events} == {*(f"mode m.l{i}" for i in range(20)), "mode m"}


def test_what_is_done_by_a_function_that_does_nothing_itself_is_noticed_whoever_asks_first(view):
    text = """
    def b(m): a(m)
    def a(m):
        b(m)
        m.eval()
    b(net)
    """
    assert script(view, text) == ["mode net"]


def test_a_flow_is_cut_off_where_it_becomes_too_long_and_says_so(view, monkeypatch):
    monkeypatch.setattr(flows, "_MOST_EVENTS", 10)
    seen = view("net.eval()\n" * 10)
    assert [(len(flow.events), flow.is_complete) for flow in seen.flows] == [(10, True)]
    seen = view("net.eval()\n" * 11)
    assert [(len(flow.events), flow.is_complete) for flow in seen.flows] == [(10, False)]


def test_flows_behind_very_many_events_are_cut_off_earlier(view, monkeypatch):
    monkeypatch.setattr(flows, "_MOST_TOGETHER", 10)
    monkeypatch.setattr(flows, "_MOST_BEHIND", 2)
    text = "".join(f"def f{i}(m):\n" + "    m.eval()\n" * 4 for i in range(5))
    assert [len(flow.events) for flow in view(text).flows] == [0, 4, 4, 4, 2, 2]


def test_functions_that_all_call_each_other_come_to_an_end(view, monkeypatch):
    monkeypatch.setattr(expansion, "_MOST_CALLS", 100)
    text = (
        "".join(f"def f{i}(m):\n" + "".join(f"    f{j}(m)\n" for j in range(30)) for i in range(30))
        + "def g(m): m.eval()\n"
    )
    seen = view(text.replace("def f29(m):\n", "def f29(m):\n    g(m)\n"))
    assert {flow.is_complete for flow in seen.flows if flow.events} == {False}
    assert any(flow.of("mode") for flow in seen.flows)


def test_who_has_callers_elsewhere(view):
    files = {"main.py": "from train import used\nused(1)\n"}
    seen = view("def used(m): m.eval()\ndef unused(m): m.eval()\nclass A:\n    def used(self): self.m.eval()\n", files)
    assert {flow.name: flow.has_callers for flow in seen.flows} == {
        "<module>": False,
        "used": True,
        "unused": False,
        "A.used": False,
    }


def test_an_alias_is_followed_to_what_it_stands_for(view):
    text = """
    class Holder:
        def __init__(self, model):
            self.model = model
            self.trunk = self.model.trunk
        def freeze(self):
            self.trunk.requires_grad_(False)
    h = Holder(net)
    h.freeze()
    """
    (flow,) = [flow for flow in view(text).flows if flow.name == "<module>"]
    assert [f"{e.what} {e.path}" for e in flow.events] == ["flag net.trunk"]
    assert flow.aliases == {"h.model": "net", "h.trunk": "net.trunk"}


CLOSURES = """
def main(lr):
    model = nn.Linear(2, 2)
    opt = optim.SGD(model.parameters(), lr)
    def evaluate(m):
        model.eval()
        x = m.x
        def deep():
            x.train()
            model.cpu()
        deep()
        log()
    def log(opt=None):
        model.train()
    def train(net):
        net.cuda()
        opt.step()
    evaluate(model.fc)
    train(model)
if __name__ == "__main__":
    main(1)
"""


def test_functions_inside_of_a_function_that_is_called_know_its_names(view):
    """As it is in most scripts: everything stands in a function that is called at the end."""
    assert script(view, CLOSURES) == [
        *("new main():model", "optimizer main():opt", "mode main():model", "mode main.<locals>.evaluate():x"),
        *("move main():model", "mode main():model", "move main():model", "step main():opt"),
    ]
    assert told(view, CLOSURES.replace("main(1)", "pass"))["main"] == [
        *("new model", "optimizer opt", "mode model", "mode main.<locals>.evaluate():x"),
        *("move model", "mode model", "move model", "step opt"),
    ]


def test_what_a_function_does_to_names_of_the_file(view):
    text = """
    net = nn.Linear(1, 1)
    def replace():
        net.fc = nn.Linear(2, 2)
        net.eval()
    def make():
        global other
        other = nn.Linear(1, 1)
        other.eval()
    replace()
    make()
    """
    assert script(view, text) == ["new net", "new net.fc", "mode net", "new other", "mode other"]
