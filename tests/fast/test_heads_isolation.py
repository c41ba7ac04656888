"""The watch finds which head was moved by another one, and reports it in words, as a table and as JSON."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from frostline.errors import CannotFreeze
from frostline.fast.heads_isolation import IsolationWatch


def move(module: nn.Module) -> None:
    with torch.no_grad():
        next(module.parameters()).add_(1.0)


def round_of(watch: IsolationWatch, heads: dict[str, nn.Module], moved_by: dict[str, list[str]]) -> None:
    for name in heads:
        watch.before_first_step(name)
        for each in moved_by[name]:
            move(heads[each])
        watch.after_first_step(name)
    watch.after_first_round()


@pytest.mark.parametrize("culprit", ["a", "b", "c"])
@pytest.mark.parametrize("victim", ["a", "b", "c"])
def test_every_pair_is_told_apart(culprit: str, victim: str):
    heads: dict[str, nn.Module] = {name: nn.Linear(2, 2) for name in "abc"}
    watch = IsolationWatch(heads)
    moved_by = {name: [name] for name in heads}
    if victim != culprit:
        moved_by[culprit].append(victim)
    round_of(watch, heads, moved_by)
    moved = [head.name for head in watch.report().heads if not head.still_in_first_round]
    assert moved == ([victim] if victim != culprit else [])


def test_memory_that_comes_to_be_shared_later_is_found():
    heads: dict[str, nn.Module] = {name: nn.Linear(2, 2) for name in "ab"}
    watch = IsolationWatch(heads)
    heads["b"].weight = heads["a"].weight
    report = watch.report()
    assert [head.shares_with for head in report.heads] == [("heads.b.weight",), ("heads.a.weight",)]
    assert not report.isolated


def test_a_view_of_the_trunk_is_refused():
    trunk = nn.Linear(4, 4)
    head = nn.Linear(4, 2)
    head.weight = nn.Parameter(trunk.weight.detach()[:2])
    with pytest.raises(CannotFreeze, match=r"the head 'a' shares memory with trunk\.weight"):
        IsolationWatch({"a": head}, trunk)


def test_the_report_has_words_a_table_and_json():
    heads: dict[str, nn.Module] = {name: nn.Linear(2, 2) for name in "ab"}
    trunk = nn.BatchNorm1d(2)
    watch = IsolationWatch(heads, trunk)
    round_of(watch, heads, {name: [name] for name in heads})
    for name in heads:
        watch.ended(name)
    good = watch.report()
    assert good.isolated
    assert str(good).startswith("2 heads, each moved by itself alone; trunk: 12 entries equal to the bit\n")
    assert good._repr_html_().startswith("<table><caption>2 heads")
    moved = watch
    move(trunk)
    move(heads["b"])
    bad = moved.report()
    assert str(bad).startswith("moved by others: b; trunk: moved: weight\n")
    data = json.loads(json.dumps(bad.to_json()))
    assert (data["isolated"], data["schema_version"]) == (False, 1)
    assert [head["alone"] for head in data["heads"]] == [True, False]
    assert set(data["heads"][0]["digest"]) == {"weight", "bias"}
    assert data["trunk"]["moved"][0]["path"] == "weight"
