"""Where a module stands among its like, told from its path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.checkpoint.coordinates import Coordinates, coordinates_of, likeness
from frostline.checkpoint.units import units_of


def places(paths: list[str], shape: tuple[int, ...] = (4,)) -> list[Coordinates]:
    found = coordinates_of(units_of({f"{path}.weight": shape for path in paths}))
    assert list(found) == paths
    return list(found.values())


def ranks(paths: list[str]) -> list[tuple[tuple[int, int], ...]]:
    return [place.ranks for place in places(paths)]


def words(path: str) -> set[str]:
    return set(places([path])[0].words)


# Ranks


def test_numbers_count_from_wherever_they_begin():
    expected = [((0, 3),), ((1, 3),), ((2, 3),)]
    assert ranks(["layer1", "layer2", "layer3"]) == expected
    assert ranks(["stages.0", "stages.1", "stages.2"]) == expected
    assert ranks(["b.7", "b.20", "b.100"]) == expected  # as numbers, not as texts
    assert ranks(["b.100", "b.7", "b.20"]) == [expected[2], expected[0], expected[1]]
    assert ranks(["first", "second", "third"]) == expected
    assert ranks(["norm_a", "norm_b", "norm_c"]) == expected


def test_a_number_that_tells_nothing_apart_says_nothing():
    assert ranks(["bn1", "conv1"]) == [(), ()]
    assert ranks(["layer4.0.bn1", "layer4.1.bn1"]) == [((0, 2),), ((1, 2),)]


def test_the_third_of_three_is_not_the_third_of_four():
    assert ranks(["l1", "l2", "l3"])[2] == ((2, 3),)
    assert ranks(["l1", "l2", "l3", "l4"])[2] == ((2, 4),)


def test_a_number_is_counted_among_modules_of_one_kind_only():
    shapes = {"layer1.weight": (4,), "layer2.weight": (4, 4), "layer3.weight": (4,)}
    found = coordinates_of(units_of(shapes))
    assert [place.ranks for place in found.values()] == [((0, 2),), (), ((1, 2),)]


def test_numbers_in_several_places():
    paths = [f"layer{i}.{j}.bn{k}" for i in (1, 2) for j in (0, 1) for k in (1, 2)]
    assert ranks(paths) == [((i, 2), (j, 2), (k, 2)) for i in (0, 1) for j in (0, 1) for k in (0, 1)]


def test_behind_a_number_others_begin_anew():
    # The second stage has one block more.
    assert ranks(["s0.b0", "s0.b1", "s1.b0", "s1.b1", "s1.b2"]) == [
        ((0, 2), (0, 2)),
        ((0, 2), (1, 2)),
        ((1, 2), (0, 3)),
        ((1, 2), (1, 3)),
        ((1, 2), (2, 3)),
    ]


def test_letters_that_stand_for_words_are_no_ranks():
    q, k, v = places(["attn.q", "attn.k", "attn.v"])
    assert q.ranks == k.ranks == v.ranks == ()
    assert (q.words, k.words, v.words) == ({"attn", "q"}, {"attn", "k"}, {"attn", "v"})
    assert places(["msa.query", "msa.key", "msa.value"]) == [q, k, v]


def test_numbers_longer_than_any_count_are_no_error():
    assert len(places([f"a{'9' * 5000}", "a1"])) == 2
    with pytest.raises(ValueError, match="4300 digits"):  # what Python itself says of it
        int("9" * 5000)


# Words


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("backbone.layer1.0.conv1", set()),
        ("model.fc", set()),
        ("aux.head", {"aux", "head"}),
        ("layer1.downsample.0", {"shortcut"}),
        ("stage.skip.conv", {"shortcut"}),
        ("Encoder.selfAttention.out_proj", {"enc", "attn", "out"}),
        ("blocks.0.ffn", {"mlp"}),
        ("SEBlock.convA", {"se"}),
        ("patch_embed.proj", {"patch", "embed"}),
        ("QKVProj", {"qkv"}),
        ("Ünït.été", {"t", "n"}),  # only letters of names in code
    ],
)
def test_words_that_mean_something(path: str, expected: set[str]):
    assert words(path) == expected


def test_likeness_of_words():
    one, two, both = frozenset({"a"}), frozenset({"b"}), frozenset({"a", "b"})
    nothing: frozenset[str] = frozenset()
    assert likeness(one, one) == likeness(nothing, nothing) == 1
    assert likeness(one, two) == 0
    assert likeness(one, both) == likeness(both, one) == 0.5
    assert likeness(nothing, one) == likeness(one, nothing) == 0.5


# Two namings of one net

blocks = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(blocks, st.integers(0, 3), st.integers(0, 3), st.randoms(use_true_random=False))
def test_one_net_under_two_namings_has_the_same_places(depths: list[int], first: int, other: int, random: object):
    tree = [(i, j, k) for i, depth in enumerate(depths) for j in range(depth) for k in range(2)]
    one = {at: f"layer{at[0] + first}.{at[1]}.bn{at[2] + 1}" for at in tree}
    two = {at: f"net.stages.{at[0] + other}.block{at[1] + other}.norm_{'ab'[at[2]]}" for at in tree}
    shuffled = list(tree)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    there = dict(zip(tree, places([one[at] for at in tree]), strict=True))
    here = dict(zip(shuffled, places([two[at] for at in shuffled]), strict=True))
    assert there == here
    assert len(set(there.values())) == len(tree)  # and every module has a place of its own
