"""What is said of events: in which loops they stand, and whether they reach all of what they name."""

from __future__ import annotations

import pytest

from frostline.lint.events import Condition, Event, Flow, Loop
from frostline.lint.values import Value

PARTS = Loop((1,), "for", Value("parameters", path="model"), conditions=1)
BATCHES = Loop((2,), "for", Value("loader", path="loader"))
IF = Condition((3,), True)


@pytest.mark.parametrize("kind", ["loader", "ref", "object", "tensor", "function"])
def test_a_loop_over_batches(kind: str):
    assert Loop((1,), "for", Value(kind)).is_over_data
    assert not Loop((1,), "comprehension", Value(kind)).is_over_data


@pytest.mark.parametrize("kind", ["parameters", "modules", "named_parameters", "list", "tuple"])
def test_a_loop_over_parts(kind: str):
    assert not Loop((1,), "for", Value(kind)).is_over_data


def test_a_loop_over_nothing_known():
    assert Loop((1,), "while").is_over_data


@pytest.mark.parametrize(
    ("event", "whole"),
    [
        (Event("flag", "model", 1, 0), True),
        (Event("flag", "model", 1, 0, conditions=(IF,)), True),
        (Event("flag", "model", 1, 0, loops=(BATCHES,), conditions=(IF,)), True),
        (Event("flag", "model.*", 1, 0, loops=(PARTS,), conditions=(IF,)), True),
        (Event("flag", "model.*", 1, 0, loops=(PARTS,), conditions=(IF, IF)), False),
        (Event("flag", "model.*", 1, 0, loops=(PARTS,), data={"filtered": True}), False),
        (Event("flag", "m", 1, 0, loops=(Loop((1,), "for", Value("modules", filtered=True)),)), False),
    ],
    ids=["plain", "in a branch", "in a branch of a loop", "loop", "branch in a loop", "filtered", "filtered loop"],
)
def test_whether_it_reaches_all_of_what_its_path_names(event: Event, whole: bool):
    assert event.whole is whole


def test_data_and_kinds():
    flow = Flow("f", (Event("new", "a", 1, 0, data={"of": "b"}), Event("step", "o", 2, 0), Event("new", "c", 3, 0)))
    assert [event.path for event in flow.of("new")] == ["a", "c"]
    assert [event.path for event in flow.of("step", "new")] == ["a", "o", "c"]
    assert (flow.events[0].get("of"), flow.events[0].get("none"), flow.events[1].get("of", 7)) == ("b", None, 7)
