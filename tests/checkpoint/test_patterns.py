"""Which names a pattern means, and the fewest patterns that mean some names and no others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.checkpoint.patterns import covering, is_meant, meant_by, read_patterns
from frostline.errors import CheckpointError


@pytest.mark.parametrize(
    ("name", "pattern", "meant"),
    [
        ("fc.weight", "fc.weight", True),
        ("fc.weight", "fc", True),
        ("fc.weight", "f", False),
        ("fc2.weight", "fc", False),
        ("a.fc.weight", "fc", False),
        ("a.fc.weight", "*.fc", True),
        ("a.b.fc.weight", "a.*.weight", True),  # a star crosses dots
        ("a.b.fc.weight", "*weight", True),
        ("fc.weight", "weight", False),
        ("_orig_mod.fc.weight", "fc", True),
        ("fc.weight", "", False),
        ("layer1.w", "layer[12]", True),
        ("layer3.w", "layer[12]", False),
    ],
)
def test_a_pattern_means_names_and_all_below_modules(name: str, pattern: str, meant: bool):
    assert is_meant(name, pattern) is meant


def test_patterns_are_read_as_one_or_several():
    assert read_patterns("fc") == ("fc",)
    assert read_patterns(iter(["a", "b"])) == ("a", "b")
    assert read_patterns(()) == ()


def test_all_that_any_pattern_means():
    names = ["a.w", "a.b", "c.w", "d"]
    assert meant_by(names, ["a", "*.w"], argument="drop", where="x.pt") == {"a.w", "a.b", "c.w"}
    assert meant_by(names, [], argument="drop", where="x.pt") == set()


def test_a_pattern_that_means_nothing_is_refused_with_what_is_near():
    with pytest.raises(CheckpointError) as caught:
        meant_by(["backbone.w", "head\x07.w"], ["head", "backbon"], argument="drop", where="x.pt")
    assert "drop='head' matches none of 2 names in x.pt" in str(caught.value)
    assert "\x07" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"drop='backbon' matches none of 1 names in x.pt\n.*backbone\.w"):
        meant_by(["backbone.w"], ["backbon"], argument="drop", where="x.pt")


@pytest.mark.parametrize(
    ("wanted", "others", "expected"),
    [
        ([], ["a.w"], []),
        ([], [], []),
        (["a.w", "b.w"], [], ["*"]),
        (["fc.weight", "fc.bias"], ["conv.weight"], ["fc"]),
        (["fc.weight"], ["fc.bias"], ["fc.weight"]),
        (["a.b.w", "a.c.w"], ["d.w"], ["a"]),
        (["a.b.w", "a.c.x"], ["a.d.w"], ["a.b", "a.c"]),
        (["a.n", "b.n"], ["a.w", "b.w"], ["*.n"]),
        (["a.n", "b.n"], ["a.w", "b.w", "c.n"], ["a.n", "b.n"]),
        (["a.n", "b.n", "n"], ["a.w", "b.w"], ["a.n", "b.n", "n"]),  # `*.n` would not mean the last
        (["a.b"], ["a"], ["a.b"]),
        (["a.b", "a.c"], ["a"], ["a.b", "a.c"]),
        (["a[0].w"], ["b.w"], ["a[[]0]"]),
        (["a*.w", "a?.w"], ["b.w", "ab.w"], ["a[*]", "a[?]"]),
    ],
)
def test_the_fewest_patterns(wanted: list[str], others: list[str], expected: list[str]):
    assert covering(wanted, others) == expected


tokens = st.sampled_from(["a", "b", "ab", "0", "[0]", "*", "?", "[!a]", "bn", "weight"])
trees = st.lists(st.lists(tokens, min_size=1, max_size=4).map(".".join), unique=True, max_size=12)


@given(trees, st.data())
def test_patterns_mean_all_of_the_wanted_and_none_of_the_others(names: list[str], data: st.DataObject):
    drawn = [name for name in names if data.draw(st.booleans())]
    others = [name for name in names if name not in drawn]
    # A name below another cannot be left out where that one is meant: a pattern means all below.
    wanted = [name for name in drawn if not any(other.startswith(f"{name}.") for other in others)]
    names = [*wanted, *others]
    patterns = covering(wanted, others)
    assert [name for name in names if any(is_meant(name, pattern) for pattern in patterns)] == wanted
    assert len(patterns) <= len(wanted)
    # Each is needed.
    for pattern in patterns:
        rest = [each for each in patterns if each != pattern]
        assert any(not any(is_meant(name, each) for each in rest) for name in wanted)


def test_names_alone_are_not_patterns():
    """The failing twin: a name with brackets, taken for a pattern, means another name and not itself."""
    assert not is_meant("a[0].w", "a[0]")
    assert is_meant("a0.w", "a[0]")
