"""Parts whose parameters are frozen while the part is in train mode: the questions that the rules share."""

from __future__ import annotations

import textwrap

import pytest

from frostline.lint.engine import open_walk
from frostline.lint.events import Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import (
    freezes_all_but,
    frozen_in_train_mode,
    is_whole_flag,
    names_a_result,
    other_names,
    reaches,
)
from frostline.lint.project import Project
from frostline.lint.source import source_from_bytes


def view_of(text: str) -> FileView:
    walk = open_walk(source_from_bytes(textwrap.dedent(text).encode(), "train.py"), Project())
    assert walk is not None
    return FileView(walk)


def flow_of(text: str, name: str = "<module>") -> Flow:
    return next(flow for flow in view_of(text).flows if flow.name == name)


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ("'fc' not in name", True),
        ("not name.startswith('fc')", True),
        ("not ('fc' in name or 'head' in name)", True),
        ("name not in ('fc.weight', 'fc.bias')", True),
        ("not any(k in name for k in keep)", True),
        ("'fc' in name", False),
        ("name.startswith('layer1')", False),
        ("'bn' not in name", False),
        ("'bias' not in name", False),
        ("p.requires_grad", False),
    ],
)
def test_all_but_what_a_name_leaves_out(test, told):
    flow = flow_of(f"for name, p in model.named_parameters():\n    if {test}:\n        p.requires_grad = False\n")
    [flag] = flow.of("flag")
    assert (freezes_all_but(flag), is_whole_flag(flag, False)) == (told, False)


def test_the_other_arm_of_a_test_for_the_head():
    flow = flow_of(
        """
        for name, p in model.named_parameters():
            if "fc" in name:
                pass
            else:
                p.requires_grad = False
        """
    )
    [flag] = flow.of("flag")
    assert freezes_all_but(flag)


def test_an_attribute_and_a_wrapper_are_other_names():
    flow = flow_of(
        """
        import torch
        class Trainer:
            def __init__(self, net):
                self.net = net
                self.ddp = torch.nn.parallel.DistributedDataParallel(net)
            def fit(self):
                self.net.train()
        """,
        "Trainer.fit",
    )
    names = other_names(flow)
    assert names["self.net"] == "net"
    assert names["self.ddp"] == "net"
    assert reaches(names, "self", "net.trunk")
    assert reaches(names, "self.ddp", "net.trunk")
    assert not reaches(names, "other", "net.trunk")
    assert not reaches(names, "net.trunk", "net")


def test_what_a_function_made_is_nothing_new_when_it_gets_its_name():
    flow = flow_of(
        """
        import torchvision
        def make():
            net = torchvision.models.resnet18()
            net.requires_grad_(False)
            return net
        model = make()
        model = torchvision.models.resnet18()
        """
    )
    made = [index for index, event in enumerate(flow.events) if event.what == "new"]
    assert [names_a_result(flow, index) for index in made] == [False, True, False]


def test_the_first_use_is_told_with_what_led_to_it():
    [found] = frozen_in_train_mode(
        view_of(
            """
            def fit(model, loader):
                model.trunk.requires_grad_(False)
                model.trunk.eval()
                model.train()
                for x in loader:
                    model(x).backward()
            """
        )
    )
    assert (found.part, found.flag.line, found.is_all, found.is_sure) == ("model.trunk", 3, False, False)
    assert found.train is not None
    assert found.undone is not None
    assert (found.undone.line, found.train.line, found.use.line, found.use.what) == (4, 5, 7, "forward")
