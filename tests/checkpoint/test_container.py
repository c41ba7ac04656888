"""Where the tensors are inside a dictionary, and what their names are without wrappers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frostline.checkpoint.container import CONTAINER_KEYS, WRAPPER_TOKENS, strip_wrappers, unwrap
from frostline.checkpoint.stored import in_memory
from frostline.errors import CheckpointError

ENTRY = in_memory(torch.ones(1))
TENSORS = {"conv.weight": ENTRY, "bn.count": ENTRY}


# Containers


@pytest.mark.parametrize(
    ("value", "container"),
    [
        ({"state_dict": TENSORS, "epoch": 3}, ("state_dict",)),
        ({"model": TENSORS, "optimizer": {"state": {0: {"exp_avg": ENTRY}}}}, ("model",)),
        ({"model": {"state_dict": OrderedDict(TENSORS)}, "iteration": ENTRY}, ("model", "state_dict")),
        ({"state_dict": TENSORS, "ema": None, "model": {"depth": 18}}, ("state_dict",)),
        ({"my_net": TENSORS, "epoch": 3}, ("my_net",)),  # no known key, and no other place
        (TENSORS, ()),
    ],
)
def test_containers_are_unwrapped_and_named(value: Any, container: tuple[str, ...]):
    assert unwrap(value, "a.pt") == (TENSORS, container, "")


@pytest.mark.parametrize("key", CONTAINER_KEYS)
def test_every_known_key_is_a_container(key: str):
    assert unwrap({key: TENSORS, "lr": 0.1}, "a.pt")[1] == (key,)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            {"teacher": TENSORS, "student": TENSORS},
            "a.pt holds tensors in 2 places: 'teacher' and 'student'\n  fix: take='teacher' or take='student'",
        ),
        (
            {"model": TENSORS, "model_ema": {"state_dict": TENSORS}},
            "in 2 places: 'model_ema' and 'model'\n  fix: take='model_ema' or take='model'",
        ),
        ({"model": TENSORS, "fc.weight": ENTRY}, "in 2 places: 'model' and the top level\n  fix: take='model'"),
        (
            {"model": {"ema": TENSORS, "net": TENSORS}},
            "in 2 places, inside 'model': 'ema' and 'net'\n  fix: take='model.ema' or take='model.net'",
        ),
        ({"a": TENSORS, "b\x1b": TENSORS}, "in 2 places: 'a' and 'b\\x1b'\n  fix: take='a' or take='b\\x1b'"),
        ({"epoch": 3, "args\x1b": {}}, "holds no tensors of a model\n  found: 'epoch', 'args\\x1b'"),
        ({0: TENSORS}, "holds no tensors of a model\n  found: 0"),
        ({"model": {"depth": 18}}, "holds no tensors of a model\n  found: 'model'"),
        ({}, "holds no tensors of a model\n  found: nothing"),
        ([ENTRY], "holds a list\n"),
        (ENTRY, "holds a InMemory\n"),
        (None, "holds a NoneType\n"),
    ],
)
def test_what_cannot_be_unwrapped(value: Any, said: str):
    with pytest.raises(CheckpointError) as caught:
        unwrap(value, "a.pt")
    assert said in str(caught.value)
    assert "fix:" in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("take", "container", "rest"),
    [
        ("teacher", ("teacher",), ""),
        ("teacher.backbone", ("teacher",), "backbone"),
        ("teacher.backbone.layer1", ("teacher",), "backbone.layer1"),
        ("student", ("student", "state_dict"), ""),
        ("student.state_dict", ("student", "state_dict"), ""),
        ("student.state_dict.backbone", ("student", "state_dict"), "backbone"),
        ("student.backbone", ("student", "state_dict"), "backbone"),
    ],
)
def test_a_path_chooses_the_container_and_what_is_left_goes_to_names(take: str, container: tuple[str, ...], rest: str):
    value = {"teacher": TENSORS, "student": {"state_dict": TENSORS}}
    assert unwrap(value, "a.pt", take) == (TENSORS, container, rest)


def test_a_key_with_dots_and_a_path_that_only_begins_like_one():
    assert unwrap({"model.ema": TENSORS, "model.raw": TENSORS}, "a.pt", "model.ema")[1:] == (("model.ema",), "")
    with pytest.raises(CheckpointError, match="holds tensors in 2 places"):
        unwrap({"teacher": TENSORS, "student": TENSORS}, "a.pt", "teach")


def test_a_path_among_names_is_left_to_names():
    assert unwrap(TENSORS, "a.pt", "conv") == (TENSORS, (), "conv")
    assert unwrap({"state_dict": TENSORS}, "a.pt", "conv") == (TENSORS, ("state_dict",), "conv")


# Wrappers


@pytest.mark.parametrize(
    ("names", "expected", "tokens"),
    [
        (["module.a", "module.b"], ["a", "b"], ["module"]),
        (["module._orig_mod.a"], ["a"], ["_orig_mod", "module"]),
        (["_orig_mod.module.a"], ["a"], ["_orig_mod", "module"]),
        (["net.module.a", "b"], ["net.a", "b"], ["module"]),
        (["my_module.a", "modules.b", "module_.c"], ["my_module.a", "modules.b", "module_.c"], []),
        (["module.module.a"], ["a"], ["module"]),
        (["_forward_module.a", "der.embed"], ["a", "der.embed"], ["_forward_module"]),
        (["l._fsdp_wrapped_module._checkpoint_wrapped_module.w"], ["l.w"], None),
        (["module.a", "a"], ["module.a", "a"], []),
        (["module.a", "_orig_mod.a", "_forward_module.b"], ["module.a", "_orig_mod.a", "b"], ["_forward_module"]),
        (["module", "module.a"], ["module", "module.a"], []),
        ([], [], []),
    ],
)
def test_wrappers_are_stripped_as_whole_parts(names: list[str], expected: list[str], tokens: list[str] | None):
    stripped, taken = strip_wrappers(dict.fromkeys(names, 0))
    assert list(stripped) == expected
    assert tokens is None or taken == tokens


def test_names_of_the_model_itself_are_kept():
    assert strip_wrappers({"module.a": 0, "_orig_mod.module.b": 1}, keep={"module"})[0] == {
        "module.a": 0,
        "module.b": 1,
    }


parts = st.lists(st.sampled_from(["a", "b", "weight", *sorted(WRAPPER_TOKENS)]), min_size=1, max_size=4)


@given(st.lists(parts.map(".".join), unique=True, max_size=8), st.sets(st.sampled_from(sorted(WRAPPER_TOKENS))))
def test_stripping_never_loses_an_entry_and_is_done_once(names: list[str], keep: set[str]):
    entries = {name: index for index, name in enumerate(names)}
    stripped, taken = strip_wrappers(entries, keep=keep)
    assert list(stripped.values()) == list(entries.values())
    assert all(stripped)
    assert not keep.intersection(taken)
    for old, new in zip(entries, stripped, strict=True):
        assert new == ".".join(part for part in old.split(".") if part not in taken)
    again, more = strip_wrappers(stripped, keep=keep)
    assert (again, more) == (stripped, [])


def test_the_naive_way_cuts_names_that_are_no_wrappers():
    """The failing twin: what repositories do, by text and by length."""
    assert "my_module.a".replace("module.", "") == "my_a"
    assert "decoder.embed"[len("_forward_module.") :] != "decoder.embed"
