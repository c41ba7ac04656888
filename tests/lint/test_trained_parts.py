"""Which parts of a model an optimizer of a flow was given."""

from __future__ import annotations

import pytest

from frostline.lint.engine import open_walk
from frostline.lint.file_view import FileView
from frostline.lint.project import Project
from frostline.lint.source import source_from_bytes
from frostline.lint.trained_parts import gives_more, is_given, optimizer_of

SOURCES = [
    ("model.parameters()", True, True),
    ("model.trunk.parameters()", True, False),
    ("model.head.parameters()", False, True),
    ("[{'params': model.trunk.parameters()}, {'params': model.head.parameters()}]", True, True),
    ("list(model.trunk.parameters()) + list(model.head.parameters())", True, True),
    ("filter(lambda p: p.requires_grad, model.parameters())", None, True),
    ("[p for p in model.parameters() if p.requires_grad]", None, True),
    ("something()", None, False),
]


@pytest.mark.parametrize(("sources", "given", "more"), SOURCES)
def test_whether_an_optimizer_has_a_part(sources, given, more):
    text = f"import torch\noptimizer = torch.optim.SGD({sources}, lr=0.1)\noptimizer.step()\n"
    walk = open_walk(source_from_bytes(text.encode(), "train.py"), Project())
    assert walk is not None
    flow = FileView(walk).flows[0]
    [step] = flow.of("step")
    optimizer = optimizer_of(flow, step)
    assert optimizer is not None
    assert (is_given(flow, "model.trunk", optimizer), gives_more(optimizer, "model.trunk")) == (given, more)


def test_a_group_that_is_added_counts_and_the_last_optimizer_by_a_name_is_the_one():
    text = (
        "import torch\n"
        "optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)\n"
        "optimizer = torch.optim.Adam(model.head.parameters())\n"
        "optimizer.add_param_group({'params': model.trunk.parameters()})\n"
        "optimizer.step()\n"
    )
    walk = open_walk(source_from_bytes(text.encode(), "train.py"), Project())
    assert walk is not None
    flow = FileView(walk).flows[0]
    optimizer = optimizer_of(flow, flow.of("step")[0])
    assert optimizer is not None
    assert (optimizer.line, is_given(flow, "model.trunk", optimizer)) == (3, True)
