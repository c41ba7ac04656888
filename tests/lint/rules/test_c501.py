"""C501: a checkpoint is loaded loosely, and nobody looks what arrived."""

from __future__ import annotations

import json

import pytest

from frostline.findings import Severity
from frostline.lint.engine import lint
from frostline.lint.source import source_from_bytes

CODE = "C501"
FILTERED = """
import torch
def load(model, path):
    pretrained = torch.load(path)
    own = model.state_dict()
    pretrained = {test}
    {report}
    own.update(pretrained)
    model.load_state_dict(own){mark}
"""
SAME_NAME = "{k: v for k, v in pretrained.items() if k in own}"
TRUE = {
    "script": """
        import torch
        model = torch.nn.Linear(2, 2)
        model.load_state_dict(torch.load("x.pth"), strict=False)  # <- C501
        """,
    "positional": """
        def load(net, state):
            net.load_state_dict(state, False)  # <- C501
        """,
    "thrown away": """
        def load(net, state):
            _ = net.load_state_dict(state, strict=False)  # <- C501
        """,
    "a name that nobody reads": """
        def load(net, state):
            message = net.load_state_dict(state, strict=False)  # <- C501
            net.eval()
            return net
        """,
    "module method": """
        import torch
        class Encoder(torch.nn.Module):
            def __init__(self, path):
                super().__init__()
                self.trunk = torch.nn.Linear(2, 2)
                self.load_state_dict(torch.load(path), strict=False)  # <- C501
        """,
    "trainer": """
        class Trainer:
            def __init__(self, model, path):
                self.model = model
                if path:
                    self.model.load_state_dict(torch.load(path)["model"], strict=False)  # <- C501
        """,
    "filtered by names": FILTERED.format(test=SAME_NAME, report="", mark="  # <- C501"),
    "filtered by names and shapes": FILTERED.format(
        test="{k: v for k, v in pretrained.items() if k in own.keys() and v.shape == own[k].shape}",
        report="",
        mark="  # <- C501",
    ),
    "filtered in a loop": """
        def load(model, state):
            own = model.state_dict()
            for name, value in state.items():
                if name in own and own[name].shape == value.shape:
                    own[name] = value
            model.load_state_dict(own)  # <- C501
        """,
    "filtered at once": """
        def load(model, state):
            own = model.state_dict()
            own.update({k: v for k, v in state.items() if k in model.state_dict()})
            model.load_state_dict(own, strict=True)  # <- C501
        """,
}
SILENT = {
    "a comment says why": """
        # not strict: layers may have been added in the worker
        model.load_state_dict(state, strict=False)
        """,
    "strict": "model.load_state_dict(torch.load('x.pth'))",
    "printed": """
        def load(model, state):
            message = model.load_state_dict(state, strict=False)
            print(message)
        """,
    "passed on": """
        def load(model, state):
            return model.load_state_dict(state, strict=False)
        """,
    "unpacked and looked at": """
        def load(model, state):
            a, b = model.load_state_dict(state, strict=False)
            assert not b, a
        """,
    "compared by hand": """
        def load(model, state):
            missing = set(model.state_dict()) - set(state)
            if missing:
                raise ValueError(missing)
            model.load_state_dict(state, strict=False)
        """,
    "an override": """
        import torch
        class Net(torch.nn.Module):
            def load_state_dict(self, state, strict=True):
                super().load_state_dict(state, strict=False)
        """,
    "an optimizer": """
        import torch
        optimizer = torch.optim.SGD(params, lr=0.1)
        optimizer.load_state_dict(state)
        """,
    "a flag": "model.load_state_dict(state, strict=strict)",
    "filtered and counted": FILTERED.format(test=SAME_NAME, report="print(len(pretrained), 'of', len(own))", mark=""),
    "filtered by a prefix": FILTERED.format(
        test="{k: v for k, v in pretrained.items() if k.startswith('trunk.')}", report="", mark=""
    ),
    "a loop that complains": """
        def load(model, state):
            own = model.state_dict()
            for name, value in state.items():
                if name in own:
                    own[name] = value
                else:
                    print("no place for", name)
            model.load_state_dict(own)
        """,
    "its own dictionary": """
        def back(model):
            own = model.state_dict()
            train(model)
            model.load_state_dict(own)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_the_fix_prints_what_did_not_match(fixed):
    text = "model.load_state_dict(state, strict=False)\n"
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == "print(model.load_state_dict(state, strict=False))\n"


def test_what_is_said_of_a_filter(find):
    (found,) = find(TRUE["filtered by names"], CODE)
    assert (
        found.finding.message == "own holds every key of model, so that this load matches whatever the checkpoint was"
    )
    assert found.finding.evidence == (
        "line 6 takes from the checkpoint what model has keys for\nnothing says how much that is"
    )
    assert found.finding.severity is Severity.WARNING
    assert found.fix is None


def test_the_last_line_of_a_cell_is_shown(tmp_path):
    def codes(*lines: str) -> list[str]:
        cell = {"cell_type": "code", "source": "\n".join(lines), "metadata": {}, "outputs": [], "execution_count": None}
        book = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        source = source_from_bytes(json.dumps(book).encode(), "load.ipynb")
        found, failure = lint(source)
        assert failure is None
        return [each.finding.code for each in found if each.finding.code == CODE]

    load = "model.load_state_dict(state, strict=False)"
    assert codes("import torch", load) == []
    assert codes(load, "model.eval()") == [CODE]
