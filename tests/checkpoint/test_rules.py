"""Renaming as data: templates, prefixes and regular expressions, and what cannot be renamed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.checkpoint.rules import Rename, read_renames, rename_all
from frostline.errors import CheckpointError


def renamed(names: list[str], rules: Any) -> list[str]:
    """The new name of each, also of those that no rule matches; each name has one."""
    found = rename_all(names, read_renames(rules))
    result: list[str] = []
    for name in names:
        (new,) = found.get(name, (name,))
        result.append(new)
    return result


# Templates


@pytest.mark.parametrize(
    ("rule", "name", "expected"),
    [
        ("layer{n}.conv{m} -> stages.{n}.conv{m}", "layer2.conv1.weight", "stages.2.conv1.weight"),
        ("layer{n}.conv{m} -> stages.{m}.{n}.{n}", "layer2.conv1.weight", "stages.1.2.2.weight"),
        ("layer{n} -> stages.{n-1}", "layer1.0.bn1.bias", "stages.0.0.bn1.bias"),
        ("blocks.{n} -> layer{n+10}", "blocks.9.fc", "layer19.fc"),
        ("a{n}.b{n} -> c{n}", "a3.b3.weight", "c3.weight"),
        ("a{n}.b{n} -> c{n}", "a3.b4.weight", None),
        ("a{n}.b{n} -> c{n}", "a3.b33.weight", None),
        ("layer{n} -> x{n}", "layer12.weight", "x12.weight"),
        ("layer{n} -> x{n}", "layerA.weight", None),
        ("layer{n} -> x{n}", "layer.weight", None),
        ("layer{n} -> x{n}", "layer1a.weight", None),
        ("layer{n} -> x{n}", "my.layer1.weight", None),
        ("*.bn -> *.norm", "stem.bn.weight", "stem.norm.weight"),
        ("*.bn -> *.norm", "stem.0.bn.weight", None),
        ("*.*.bn -> *.*.norm", "stem.0.bn.weight", "stem.0.norm.weight"),
        ("enc_*.{n}.* -> *.{n+1}.*", "enc_left.0.mlp.fc.bias", "left.1.mlp.fc.bias"),
        ("*.bn -> norm", "stem.bn.weight", "norm.weight"),
        ("fc -> head", "fc.weight", "head.weight"),
        ("fc -> head", "fc", "head"),
        ("fc -> head", "fc2.weight", None),
        ("fc -> head", "fc\n.weight", None),
        ("a.b -> c", "a_b.weight", None),
        ("fc.weight -> head.kernel", "fc.weight", "head.kernel"),
        ("a[0](b -> c", "a[0](b.x", "c.x"),
    ],
)
def test_a_template_stands_for_whole_parts_from_the_beginning(rule: str, name: str, expected: str | None):
    (read,) = read_renames(rule)
    assert read.apply(name) == (None if expected is None else (expected,))


def test_a_number_that_would_be_negative_is_refused():
    (rule,) = read_renames("layer{n} -> stages.{n-1}")
    assert rule.apply("layer1.weight") == ("stages.0.weight",)
    with pytest.raises(CheckpointError, match="'layer0' would get the number -1\n  fix: another offset"):
        rule.apply("layer0.weight")


def test_a_name_with_thousands_of_digits_is_no_error_of_another_kind():
    huge = f"layer{'9' * 5000}.weight"
    assert read_renames("layer{n} -> a{n+1}")[0].apply(huge) is None
    with pytest.raises(ValueError, match="4300 digits"):  # what Python itself says of it
        int("9" * 5000)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("layer{n} -> stages.{m}", "the right side has {m}, the left side has not"),
        ("layer{n+1} -> stages.{n}", "{n+1} on the left side"),
        ("* -> *.*", "more * on the right than on the left"),
        ("layer.weight", "has no arrow"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(rule: str, said: str):
    with pytest.raises(CheckpointError) as caught:
        read_renames(rule)
    assert said in str(caught.value)
    assert "fix:" in str(caught.value)


# Prefixes


def test_a_prefix_is_taken_off_and_put_in_front():
    names = ["backbone.fc.weight", "my_backbone.fc.weight", "backbone"]
    assert renamed(names, {"backbone.": ""}) == ["fc.weight", "my_backbone.fc.weight", "backbone"]
    assert renamed(names, {"backbone.": "trunk."})[0] == "trunk.fc.weight"
    assert renamed(["fc.weight", "bn"], {"": "backbone."}) == ["backbone.fc.weight", "backbone.bn"]


# Regular expressions


def test_a_regular_expression_is_searched_anywhere_and_keeps_its_flags():
    names = ["a.gamma", "a.GAMMA.b"]
    assert renamed(names, [(re.compile(r"\.gamma$"), ".weight")]) == ["a.weight", "a.GAMMA.b"]
    assert renamed(names[1:], [(re.compile("gamma", re.IGNORECASE), "weight")]) == ["a.weight.b"]
    assert renamed(["x.3.y"], [(re.compile(r"(\w)\.(\d)"), r"\2.\g<1>")]) == ["3.x.y"]
    both = (re.compile("(?i)GAMMA . x", re.DOTALL | re.VERBOSE), "w")
    assert renamed(["gamma\nx", "gammax"], [both]) == ["w", "gammax"]


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        ("(a", "b", "the left side is no regular expression"),
        ("a", r"\1", "the right side does not go with the left: invalid group reference 1"),
        ("a", r"\g<x>", "the right side does not go with the left: unknown group name 'x'"),
        ("a", r"\q", r"the right side does not go with the left: bad escape \q"),
    ],
)
def test_a_broken_regular_expression_is_refused_before_it_is_used(left: str, right: str, said: str):
    with pytest.raises(CheckpointError) as caught:
        Rename(left, (right,), regex=True)
    assert said in str(caught.value)


# Forms


def test_rules_are_read_in_every_form():
    expected = (Rename("fc", ("head",)),)
    assert read_renames("fc -> head") == expected
    assert read_renames("fc->head") == expected
    assert read_renames(["fc -> head"]) == expected
    assert read_renames({"fc": "head"}) == expected
    assert read_renames({"fc": ["head"]}) == expected
    assert read_renames([("fc", "head")]) == expected
    assert read_renames(expected[0]) == read_renames(expected) == expected
    assert read_renames(None) == read_renames([]) == read_renames({}) == ()
    assert read_renames({re.compile("a"): "b"}) == (Rename("a", ("b",), regex=True),)


def test_a_rule_survives_json():
    for rule in read_renames({"layer{n}": ["a.{n}", "b.{n-1}"], re.compile("gamma$", re.IGNORECASE): "weight"}):
        values = json.loads(json.dumps(rule.to_json()))
        assert Rename(**{**values, "right": tuple(values["right"])}) == rule


def test_a_rule_is_printed_as_it_was_meant():
    assert [str(rule) for rule in read_renames({"": "a.", "b": "", "fc": ["x", "y"]})] == [
        '"" -> a.',
        "b -> ''",
        "fc -> x and y",
    ]


# Many names


def test_one_name_goes_to_two_places():
    rules = read_renames({"enc{n}": ["left.{n}", "right.{n+1}"]})
    found = rename_all(["enc0.w", "enc1.w", "fc.w"], rules)
    assert found == {"enc0.w": ("left.0.w", "right.1.w"), "enc1.w": ("left.1.w", "right.2.w")}


def test_the_first_rule_that_matches_counts():
    rules = ["layer1.fc -> special", "layer{n} -> stages.{n}"]
    assert renamed(["layer1.fc.w", "layer1.bn.w"], rules) == ["special.w", "stages.1.bn.w"]
    with pytest.raises(CheckpointError, match=r"rename layer1.fc -> special: the rule matches none of 2 names"):
        rename_all(["layer1.fc.w", "layer1.bn.w"], read_renames(rules[::-1]))


def test_what_no_rule_matches_keeps_its_name():
    assert rename_all(["a.w", "b.w"], read_renames("a -> c")) == {"a.w": ("c.w",)}


def test_a_rule_that_matches_nothing_names_what_is_near():
    with pytest.raises(CheckpointError) as caught:
        rename_all(["layer1.conv1.weight", "layer1.bn1.weight"], read_renames("layer1.conv9 -> x"))
    assert "rename layer1.conv9 -> x: the rule matches none of 2 names in the checkpoint" in str(caught.value)
    assert "layer1.conv1" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "rules", "said"),
    [
        (["a.w", "b.w"], "a -> b", "    b.w <- a.w, b.w"),  # with a name that no rule touches
        (["a1.w", "a2.w"], "a{n} -> c", "    c.w <- a1.w, a2.w"),
        (["a.w", "b.w"], ["a -> c", "b -> c"], "    c.w <- a.w, b.w"),
        (["a.w"], {"a": ["b", "b"]}, "    b.w <- a.w, a.w"),
        (["a\x1b.w", "b.w"], [(re.compile("^b"), "a\x1b")], "    a\\x1b.w <- a\\x1b.w, b.w"),
    ],
)
def test_collisions_are_named_and_nothing_is_lost(names: list[str], rules: Any, said: str):
    with pytest.raises(CheckpointError) as caught:
        rename_all(names, read_renames(rules))
    assert "rename: 1 names would stand for several tensors each\n" in str(caught.value)
    assert said in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_two_names_may_change_places():
    assert renamed(["a.w", "b.w"], ["a -> b", "b -> a"]) == ["b.w", "a.w"]


words = st.text("abcdefg_", min_size=1, max_size=4)
tails = st.lists(st.sampled_from(["conv", "bn", "0", "12", "weight"]), max_size=3)


@given(words, words, st.integers(0, 3), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), tails), max_size=12))
def test_there_and_back_by_a_template_is_the_identity(left: str, right: str, by: int, rows: list[Any]):
    names = list(dict.fromkeys(".".join([f"{left}{n}.conv{m}", *tail]) for n, m, tail in rows))
    there = f"{left}{{n}}.conv{{m}} -> {right}.{{m+{by}}}.x.{{n}}"
    back = f"{right}.{{m}}.x.{{n}} -> {left}{{n}}.conv{{m-{by}}}"
    if names:
        new = renamed(names, there)
        assert len(set(new)) == len(names)
        assert renamed(new, back) == names


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join), unique=True, max_size=8))
def test_renaming_either_keeps_names_apart_or_refuses(names: list[str]):
    rules = read_renames({"a": "b"})
    new = [re.sub(r"^a(?=\.|$)", "b", name) for name in names]
    if len(set(new)) < len(new) or not any(name.split(".")[0] == "a" for name in names):
        with pytest.raises(CheckpointError):
            rename_all(names, rules)
    else:
        assert renamed(names, rules) == new
