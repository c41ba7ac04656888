"""Models that a flow wraps for distributed training."""

from __future__ import annotations

import textwrap

from frostline.lint.events import Flow
from frostline.lint.file_view import FileView
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.parsing import parse
from frostline.lint.project import Project
from frostline.lint.source import Source, source_from_bytes
from frostline.lint.wrapping import Wrapping, trains_after, wrappings

HEAD = "from torch.nn.parallel import DistributedDataParallel as DDP\n"


def flow_of(text: str) -> Flow:
    source = source_from_bytes((HEAD + textwrap.dedent(text)).encode(), "train.py")
    assert isinstance(source, Source)
    return FileView(ModuleWalk(source, parse(source), "train", Project())).flows[-1]


def one(text: str) -> Wrapping:
    (found,) = wrappings(flow_of(text))
    return found


def test_what_lies_inside_goes_by_three_names():
    found = one("def run(net):\n    model = DDP(net)\n")
    assert (found.wrapper, found.event.get("of")) == ("model", "net")
    assert [found.inside(path) for path in ("model", "model.module", "net", "net.fc.*", "model.module.fc")] == [
        "",
        "",
        "",
        ".fc",
        ".fc",
    ]
    assert [found.inside(path) for path in ("models", "net2.fc", "optimizer")] == [None, None, None]


def test_a_keyword_names_the_model_and_literals_are_kept():
    found = one("def run(net):\n    model = DDP(module=net, find_unused_parameters=True, device_ids=ids)\n")
    assert found.event.get("of") == "net"
    assert found.event.get("options") == {"find_unused_parameters": True}


def test_later_ends_where_it_is_wrapped_anew_and_leaves_the_other_branch_out():
    flow = flow_of(
        """
        def run(net, distributed):
            if distributed:
                model = DDP(net)
            else:
                net.half()
            net.train()
            model = DDP(net)
            net.eval()
        """
    )
    first, second = wrappings(flow)
    assert [event.what for _, event in first.later()] == ["new", "mode"]
    assert [event.get("value") for _, event in second.later() if event.what == "mode"] == [False]


def test_wrapped_anew_before_or_behind_training():
    text = """
        def run(net, loader):
            model = DDP(net)
            net.requires_grad_(False)
            {one}
            {other}
        """
    train, wrap = "net(x).sum().backward()", "model = DDP(net)"
    for lines, redone in (((wrap, train), True), ((train, wrap), False)):
        flow = flow_of(text.format(one=lines[0], other=lines[1]))
        first = next(wrappings(flow))
        (index,) = (i for i, event in first.later() if event.what == "flag")
        assert first.is_redone(index) is redone


def test_training_after_an_event_counts_a_shared_loop():
    def told(text: str) -> bool | None:
        flow = flow_of(text)
        (index,) = (i for i, event in enumerate(flow.events) if event.what == "flag")
        return trains_after(flow, index)

    head = "def run(net, loader):\n    for x in loader:\n        net(x).sum().backward()\n"
    assert told(head + "        net.requires_grad_(True)\n") is True
    assert told(head + "    net.requires_grad_(True)\n") is False
    assert told("def run(net):\n    net.requires_grad_(True)\n") is None
