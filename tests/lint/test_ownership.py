"""Which parameters the optimizers of a flow have."""

from __future__ import annotations

import pytest

from frostline.lint.ownership import Ownership, is_required_only, root_of
from frostline.lint.values import Value


def owned(view, text: str) -> Ownership:
    return Ownership(view(text).flows[0])


def test_what_an_optimizer_has_without_wrappers(view):
    text = """
        import torch
        from torch import nn
        model = nn.DataParallel(net)
        one = torch.optim.SGD(model.parameters(), lr=0.1)
        two = torch.optim.SGD(model.module.fc.parameters(), lr=0.1)
        two.add_param_group({"params": unknown})
        """
    book = owned(view, text)
    assert [(o.name, [s.path for s in o.sources], o.is_known) for o in book.owners] == [
        ("one", ["net"], True),
        ("two", ["net.fc"], True),
        ("two", ["unknown"], False),
    ]
    one, two, group = book.owners
    assert [o.name for o in book.made()] == ["one", "two"]
    assert (one.has_all("net.fc"), two.has_all("net"), two.may_have("net"), two.may_have("other")) == (
        True,
        False,
        True,
        False,
    )
    assert group.may_have("anything")


def test_who_lost_what_is_made_anew(view):
    text = """
        import torch
        from torch import nn
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.fc = nn.Linear(2, 2)
        {then}
        """
    for then, wanted in (
        ("model(x).sum().backward()", "optimizer"),
        ("optimizer.add_param_group({'params': model.fc.parameters()})", None),
        ("optimizer = torch.optim.SGD(model.parameters(), lr=0.1)", None),
        ("optimizer = rebuild_optimizer(model)", None),
        ("show(model)", "optimizer"),
    ):
        book = owned(view, text.format(then=then))
        (new,) = book.flow.of("new")
        owner = book.orphaned(new, new.path)
        assert (owner.name if owner is not None else None) == wanted, then


def test_whether_it_steps_behind_an_event(view):
    text = """
        import torch
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.eval()
        for x in loader:
            optimizer.step()
            model.half()
        model.cuda()
        """
    book = owned(view, text)
    (owner,) = book.owners
    (mode,) = book.flow.of("mode")
    inside, behind = book.flow.of("move")
    assert [book.trains_after(event, owner) for event in (mode, inside, behind)] == [True, True, False]
    assert not book.steps_unseen()
    assert owned(view, "optimizer.step()\n").steps_unseen()


def test_what_is_frozen_at_a_place(view):
    text = """
        model.requires_grad_(False)
        model.fc.requires_grad_(True)
        model.eval()
        """
    book = owned(view, text)
    assert book.is_frozen("model.trunk", 3) is not None
    assert book.is_frozen("model.fc", 3) is None
    assert book.is_frozen("model", 3) is None
    assert book.is_frozen("model", 1) is not None


@pytest.mark.parametrize(
    ("test", "wanted"),
    [
        ("p.requires_grad", True),
        ("not (not p.requires_grad)", True),
        ("p.requires_grad is True", True),
        ("not (p.requires_grad)", False),
        ("p.requires_grad and 'a' in name", False),
    ],
)
def test_filters_on_the_flag(test, wanted):
    assert is_required_only(Value("parameters", path="m", filtered=True, tests=(test,))) is wanted


def test_roots():
    assert [root_of(p) for p in ("a.b", "self.a.b", "f():a.b", "f():self.a.b", "a[0]")] == [
        "a",
        "self.a",
        "f():a",
        "f():self.a",
        "a",
    ]
