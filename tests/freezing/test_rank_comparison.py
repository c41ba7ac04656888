"""Laying what several processes hold side by side; no process is started here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.freezing.rank_comparison import RankComparison, RankEntry, compare_entries

WEIGHT = RankEntry("parameter", "a" * 32, "float32", (2, 3), ("state",))
FLAG = RankEntry("requires_grad", False, levels=("state",))
MODE = RankEntry("mode", False, levels=("state",))
MODEL = {"fc.weight": WEIGHT, "fc.weight.requires_grad": FLAG, "fc.training": MODE}

entries = st.builds(
    RankEntry,
    kind=st.sampled_from(["parameter", "buffer"]),
    mark=st.sampled_from(["a", "b"]),
    dtype=st.just("float32"),
    shape=st.sampled_from([(1,), (2,)]),
    levels=st.sampled_from([(), ("grad",), ("state",), ("grad", "state")]),
)
models = st.dictionaries(st.sampled_from(["x", "y.0", "y.1", "z"]), entries)


@given(st.lists(models, min_size=2, max_size=4))
def test_something_is_named_exactly_where_the_ranks_differ(ranks):
    """Against a check that shares no code: an entry is named if and only if two ranks have it otherwise."""
    paths = {path for entries in ranks for path in entries}
    differ = {path for path in paths if any(entries.get(path) != ranks[0].get(path) for entries in ranks)}
    found = compare_entries(ranks, "everything")
    assert set(found.paths) == differ
    assert all(len(gap.by_rank) == len(ranks) and len(set(gap.by_rank)) > 1 for gap in found.differences)
    assert found.entries == len(paths)
    assert ("fix:" in str(found)) == bool(differ)


@given(models, st.integers(2, 5))
def test_ranks_that_hold_the_same_do_not_differ(model, world):
    found = compare_entries([dict(reversed(list(model.items())))] + [model] * (world - 1), "held")
    assert found.differences == []
    assert str(found).startswith(f"{world} processes hold the same: {len(model)} state entries, ")


@given(st.lists(models, min_size=2, max_size=4), st.permutations(range(4)))
def test_the_order_of_the_ranks_does_not_count(ranks, order):
    mixed = [ranks[number] for number in order if number < len(ranks)]
    assert set(compare_entries(mixed, "held").paths) == set(compare_entries(ranks, "held").paths)


def test_a_hold_that_one_rank_lacks_is_one_line():
    other = {path: replace(entry, levels=()) for path, entry in MODEL.items()}
    # Its flags differ too, and its mode, because the hold does.
    other["fc.weight.requires_grad"] = replace(FLAG, mark=True, levels=())
    other["fc.training"] = replace(MODE, mark=True, levels=())
    assert str(compare_entries([MODEL, other], "held")).splitlines() == [
        "3 of 3 state entries are not the same on 2 processes",
        "  rank 1 does not hold fc.weight, fc.weight.requires_grad, fc.training, which rank 0 holds at level 'state'",
        "  fix: freeze and thaw the same parts on every process, not under `if rank == 0`",
    ]


def test_values_are_grouped_by_the_ranks_that_agree():
    many = {f"layer{n}.weight": replace(WEIGHT, mark=f"{n:032x}") for n in range(3)}
    moved = {path: replace(entry, mark=f"{n:x}" * 32) for n, (path, entry) in enumerate(many.items(), 10)}
    assert str(compare_entries([many, many, moved], "held")).splitlines()[1] == (
        "  other values: layer[0-2].weight (x3) (ranks 0, 1: 00000000, rank 2: aaaaaaaa, ...)"
    )


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(WEIGHT, mark="b" * 32), "other values: fc.weight (rank 0: aaaaaaaa, rank 1: bbbbbbbb)"),
        (
            replace(WEIGHT, shape=(3, 2)),
            "of another shape or dtype: fc.weight (rank 0: parameter float32 2x3, rank 1: parameter float32 3x2)",
        ),
        (replace(WEIGHT, levels=("grad",)), "held at other levels: fc.weight (rank 0: state, rank 1: grad)"),
        (replace(WEIGHT, levels=()), "rank 1 does not hold fc.weight, which rank 0 holds at level 'state'"),
    ],
)
def test_each_difference_is_said(other, said):
    assert said in str(compare_entries([{"fc.weight": WEIGHT}, {"fc.weight": other}], "held"))


def test_a_flag_by_its_value():
    found = compare_entries([{"fc.training": MODE}, {"fc.training": replace(MODE, mark=True)}], "held")
    assert "other mode: fc.training (rank 0: False, rank 1: True)" in str(found)
    assert "set flags and modes alike" in str(found)


def test_another_set_of_entries():
    found = compare_entries([MODEL, MODEL, {}, {}], "held")
    assert "ranks 2, 3 do not have fc.weight, fc.weight.requires_grad, fc.training, which ranks 0, 1 have" in str(found)
    assert "build the same model" in str(found)


def test_a_shard_differs_by_rank_and_is_named():
    shard = RankEntry("parameter", None, "float32", (8, 3), ("state",), shard=True)
    found = compare_entries([{"fc.weight": shard}] * 2, "held")
    assert found.shards == ("fc.weight",)
    assert str(found).splitlines()[1] == "  sharded, so not compared by value: fc.weight"
    # One rank that has the whole of it is a difference.
    assert compare_entries([{"fc.weight": shard}, {"fc.weight": WEIGHT}], "held").paths == ["fc.weight"]


def test_json_and_html():
    found = compare_entries([MODEL, {**MODEL, "fc.weight": replace(WEIGHT, mark="<b>")}], "everything")
    data = json.loads(json.dumps(found.to_json()))
    assert data["schema_version"] == 1
    assert data["differences"] == [
        {"path": "fc.weight", "kind": "parameter", "change": "value", "by_rank": ["a" * 32, "<b>"]}
    ]
    assert (data["world"], data["what"], data["entries"], data["held"]) == (2, "everything", 3, 3)
    html = found._repr_html_()
    assert "<th>rank 1</th>" in html
    assert "&lt;b&gt;" in html
    assert "1 of 3 state entries" in html


def test_one_process():
    assert str(RankComparison(1, "held")) == "one process: there is nothing to compare"
    assert RankComparison(1, "held").paths == []
