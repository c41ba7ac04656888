"""One beginning in front of all names on one side."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.checkpoint.prefixes import find_prefix

TRUNK = {"conv.weight": (4, 3, 3, 3), "bn.weight": (4,), "bn.bias": (4,), "fc.weight": (2, 4)}


def under(prefix: str, names: dict[str, tuple[int, ...]] = TRUNK) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{name}": shape for name, shape in names.items()}


@pytest.mark.parametrize("prefix", ["backbone.", "a.b.c.", "_."])
def test_a_beginning_on_either_side(prefix: str):
    inside = find_prefix(under(prefix), TRUNK)
    assert inside is not None
    assert inside.pairs == {f"{prefix}{name}": name for name in TRUNK}
    assert inside.why == f"{prefix!r} in front of names in the checkpoint"
    outside = find_prefix(TRUNK, under(prefix))
    assert outside is not None
    assert outside.pairs == {name: f"{prefix}{name}" for name in TRUNK}
    assert outside.why == f"{prefix!r} in front of names in the model"
    assert not inside.tied
    assert not outside.tied
    assert inside.rivals == outside.rivals == frozenset()


def test_what_else_there_is_does_not_matter():
    rest = {"queue": (99,), "head.weight": (7, 4), "backbone.extra": (1,)}
    found = find_prefix({**rest, **under("backbone.")}, {**TRUNK, "new.weight": (5,)})
    assert found is not None
    assert found.pairs == {f"backbone.{name}": name for name in TRUNK}


def test_only_names_with_the_same_shape_count():
    source = under("backbone.")
    source["backbone.fc.weight"] = (10, 4)
    found = find_prefix(source, TRUNK)
    assert found is not None
    assert found.pairs == {f"backbone.{name}": name for name in TRUNK if name != "fc.weight"}


def test_two_sub_trees_that_fit_alike_are_tied_and_named():
    found = find_prefix({**under("teacher."), **under("student.")}, TRUNK)
    assert found is not None
    assert found.tied
    assert found.why == "'teacher.' and 'student.' in front of names in the checkpoint fit alike"
    assert found.pairs == {f"teacher.{name}": name for name in TRUNK}
    assert found.rivals == {f"student.{name}" for name in TRUNK}


def test_two_places_in_the_model_are_tied_too():
    found = find_prefix(TRUNK, {**under("left."), **under("right.")})
    assert found is not None
    assert found.tied
    assert found.why == "'left.' and 'right.' in front of names in the model fit alike"
    assert found.pairs == {name: f"left.{name}" for name in TRUNK}
    assert found.rivals == frozenset()  # nothing in the checkpoint is left over


def test_a_smaller_sub_tree_is_no_rival():
    ema = {"ema.bn.weight": (4,), "ema.bn.bias": (4,)}
    found = find_prefix({**under("net."), **ema}, TRUNK)
    assert found is not None
    assert not found.tied
    assert set(found.pairs) == set(under("net."))


def test_beginnings_for_other_entries_are_no_rivals():
    left, right = {"a.weight": (1,), "b.weight": (2,)}, {"c.weight": (3,), "d.weight": (4,)}
    found = find_prefix({**under("x.", left), **under("y.", right)}, {**left, **right})
    assert found is not None
    assert not found.tied
    assert found.pairs == {"x.a.weight": "a.weight", "x.b.weight": "b.weight"}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ({}, {}),
        ({}, TRUNK),
        (TRUNK, {}),
        (TRUNK, TRUNK),  # nothing stands in front
        ({"other.bn.weight": (4,), **under("x", TRUNK)}, TRUNK),  # one of four is an accident
        ({f"m{n}.weight": (n,) for n in range(1, 9)} | {"a.fc.weight": (2, 4)}, TRUNK),
        ({"xfc.weight": (2, 4)}, {"fc.weight": (2, 4)}),  # no whole part
    ],
)
def test_an_accident_explains_too_little(source: dict[str, tuple[int, ...]], target: dict[str, tuple[int, ...]]):
    assert find_prefix(source, target) is None


def test_half_of_either_side_is_enough():
    assert find_prefix({"a.bn.weight": (4,), "a.bn.bias": (4,)}, TRUNK) is not None
    three = {name: TRUNK[name] for name in ("conv.weight", "bn.weight", "bn.bias")}
    assert find_prefix({"a.bn.weight": (4,), "b.x": (1,), "c.x": (1,)}, three) is None


names = st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(".".join), unique=True, max_size=8)


@given(names, names)
def test_pairs_are_one_to_one_between_names_of_equal_shape(first: list[str], second: list[str]):
    source, target = dict.fromkeys(first, (2,)), dict.fromkeys(second, (2,))
    found = find_prefix(source, target)
    if found is not None:
        assert set(found.pairs) <= set(source)
        assert set(found.pairs.values()) <= set(target)
        assert len(set(found.pairs.values())) == len(found.pairs)
        assert 2 * len(found.pairs) >= min(len(source), len(target))
        cut = {a[: -len(b)] if len(a) > len(b) else b[: -len(a)] for a, b in found.pairs.items()}
        assert len(cut) == 1
        assert cut.pop().endswith(".")
