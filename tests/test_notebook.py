"""What prints itself as text shows itself in a notebook too, escaped, in the colours that the notebook has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from torch import nn

import frostline
from frostline.optim.unfreeze import Epoch, Stage, Unfreeze
from frostline.state.snapshot import snapshot

ROOMS = (
    "checkpoint",
    "doctor",
    "fast",
    "freezing",
    "heads",
    "integrations",
    "meta",
    "norms",
    "optim",
    "state",
    "tasks",
)
# A word or a line of something larger, which shows it: a rule of renaming, an interval, a place in source.
PARTS = {
    "Blend",
    "Blocked",
    "Cumulative",
    "Domain",
    "EMA",
    "Epoch",
    "Folded",
    "Form",
    "Interval",
    "Move",
    "OncePerStep",
    "Operation",
    "Place",
    "Plateau",
    "Policy",
    "Rename",
    "StatsPolicy",
    "Step",
    "Tried",
    "Variant",
}


def texts() -> Iterator[tuple[str, bool]]:
    """Every class of the rooms that says how it is printed, and whether it says so for notebooks."""
    for room in ROOMS:
        for path in (Path(frostline.__file__).parent / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    own = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
                    if "__str__" in own:
                        yield node.name, "_repr_html_" in own


def test_whatever_prints_itself_shows_itself_in_a_notebook() -> None:
    found = dict(texts())
    assert len(found) > 40
    assert {name for name, shown in found.items() if not shown} == PARTS


def test_names_are_escaped_and_no_colour_is_set() -> None:
    model = nn.ModuleDict({"<b>&": nn.Linear(2, 2), "fc": nn.BatchNorm1d(2)})
    shown = [
        frostline.inventory(model),
        frostline.explain(model),
        snapshot(model).diff(model),
        frostline.param_groups(model, 0.1, head="fc"),
        frostline.freeze(model, "<b>&"),
        Unfreeze((Stage(("<b>&",), Epoch(2)),)),
    ]
    for each in shown:
        text = each._repr_html_()
        assert "<b>" not in text
        assert "color" not in text
