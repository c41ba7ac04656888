"""Dotted paths: joining, wrapper tokens, nearest names, folding."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from frostline.errors import UnsupportedModel
from frostline.state import names
from frostline.state.names import Folded, canonical, fold, is_under, join, matches, natural_key, nearest, parent, unwrap

TOKENS = st.text(st.characters(codec="utf-8", exclude_characters=".", exclude_categories=["C"]), min_size=1, max_size=6)
PATHS = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
# Few letters, so that paths which differ in their digits alone are common; `#` because a mask character could be used.
NUMBERED = st.text("a#.0123456789", min_size=1, max_size=8)


@given(PATHS, TOKENS)
def test_parent_undoes_join(path: str, token: str) -> None:
    assert parent(join(path, token)) == path
    assert join("", path) == path == join(path, "")
    assert is_under(join(path, token), path)
    assert not is_under(path, join(path, token))


def test_the_root() -> None:
    assert join() == join("", "") == ""
    assert parent("cls_token") == parent("") == ""
    assert is_under("", "")
    assert is_under("anything", "")
    assert not is_under("", "anything")


def test_below_is_by_whole_tokens() -> None:
    assert not is_under("layer10.conv", "layer1")
    assert "layer10.conv".startswith("layer1")  # what a prefix comparison would say
    assert is_under("layer1", "layer1")


@pytest.mark.parametrize("token", sorted(names.WRAPPER_TOKENS))
def test_wrapper_tokens_are_left_out_anywhere(token: str) -> None:
    assert canonical(token) == ""
    assert canonical(f"{token}.a.b") == "a.b"
    assert canonical(f"a.{token}.{token}.b") == "a.b"
    assert canonical(f"a.b.{token}") == "a.b"
    # As whole tokens only: `str.replace` would also cut these.
    assert canonical(f"a.my{token}.b{token}x") == f"a.my{token}.b{token}x"


def test_module_is_a_name_like_any_other() -> None:
    """`module` is DataParallel's token, and what many people call a child."""
    assert canonical("module.conv") == "module.conv"


@given(PATHS)
def test_canonical_is_idempotent_and_matches_by_itself(path: str) -> None:
    assert canonical(canonical(path)) == canonical(path)
    assert matches(path, "*")


def test_unwrap_looks_through_every_wrapper_at_any_depth() -> None:
    model = nn.Linear(1, 1)

    def compiled(module: nn.Module) -> nn.Module:
        return torch.compile(module, backend="eager")

    chains = [chain for n in range(4) for chain in itertools.product([compiled, nn.DataParallel], repeat=n)]
    for chain in chains:
        wrapped: nn.Module = model
        for wrap in chain:
            if wrap is compiled and hasattr(wrapped, "_orig_mod"):
                continue  # torch answers a compiled compiled module with a function
            wrapped = wrap(wrapped)
        assert unwrap(wrapped) is model
        assert (wrapped is model) == (chain == ())


def test_unwrap_leaves_a_child_called_module_alone() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(1, 1)

    own = Own()
    assert unwrap(own) is own


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    [
        ("layer1.0.bn1", "layer1", False),
        ("layer1.0.bn1", "layer1*", True),
        ("layer1.0.bn1", "*.bn?", True),
        ("layer1.0.bn1", "layer[12].*", True),
        ("Layer1", "layer1", False),
        ("a._checkpoint_wrapped_module.b", "a.b", True),
        ("a._checkpoint_wrapped_module.b", "a._checkpoint_wrapped_module.b", True),
        ("_orig_mod", "", True),
        ("", "", True),
        ("a", "", False),
    ],
)
def test_matches(path: str, pattern: str, expected: bool) -> None:
    assert matches(path, pattern) is expected


def test_nearest_prefers_whole_paths_then_last_tokens_then_parts() -> None:
    pool = ["", "trunk", "trunk.conv", "trunk.bn1", "heads.digit", "heads.parity"]
    assert nearest("trunc", pool)[0] == "trunk"
    assert nearest("head.bn1", pool)[0] in {"trunk.bn1"}
    assert nearest("digit", pool)[0] == "heads.digit"
    assert "heads.parity" in nearest("parity*", pool)
    assert nearest("zzzzzz", pool) == []
    assert nearest("", pool) == []


@given(PATHS, st.lists(PATHS, max_size=12), st.integers(1, 8))
def test_nearest_returns_some_of_the_pool_each_once(wanted: str, pool: list[str], most: int) -> None:
    found = nearest(wanted, pool, most)
    assert len(found) <= most
    assert len(set(found)) == len(found)
    assert set(found) <= set(pool)
    if wanted in pool:
        assert found[0] == wanted


def test_fold_says_each_range() -> None:
    paths = [f"layer{i}.{j}.bn1.running_mean" for i in (1, 2, 4) for j in (0, 1)]
    assert [str(f) for f in fold(paths)] == ["layer{1,2,4}.[0-1].bn1.running_mean (x6)"]
    assert fold(paths)[0].paths == tuple(paths)


def test_a_number_that_is_the_same_everywhere_stays() -> None:
    assert [f.pattern for f in fold(["a1.b0", "a1.b7"])] == ["a1.b{0,7}"]
    assert [f.pattern for f in fold([f"b{i}" for i in (0, 2, 4, 6, 9)])] == ["b{0..9}"]


def test_a_path_that_stands_alone_is_printed_as_it_is() -> None:
    assert [str(f) for f in fold(["block07.w", "c#.w", "c1.w"])] == ["block07.w", "c#.w", "c1.w"]


@given(st.lists(NUMBERED, unique=True, max_size=12))
def test_fold_loses_nothing_and_groups_what_differs_in_digits_only(paths: list[str]) -> None:
    groups = fold(paths)
    assert sorted(path for group in groups for path in group.paths) == sorted(paths)
    shapes = [re.split(r"\d+", group.paths[0]) for group in groups]
    assert all(shapes.count(shape) == 1 for shape in shapes)
    for group, shape in zip(groups, shapes, strict=True):
        assert all(re.split(r"\d+", path) == shape for path in group.paths)
        if len(group.paths) == 1:
            assert str(group) == group.paths[0]
    first = {group.paths[0]: paths.index(group.paths[0]) for group in groups}
    assert list(first.values()) == sorted(first.values())


def test_folded_is_a_value() -> None:
    assert Folded("a", ("a",)) == Folded("a", ("a",))


@given(st.lists(PATHS | NUMBERED, max_size=8))
def test_natural_order_is_a_total_order_for_any_text(paths: list[str]) -> None:
    keys = [natural_key(path) for path in sorted(paths, key=natural_key)]
    assert all(one <= other for one, other in itertools.combinations(keys, 2))
    assert all(
        "".join(str(n) if kind == 0 else text for kind, n, text in natural_key(p)) == p for p in paths if canon(p)
    )


def canon(path: str) -> bool:
    """Whether its numbers are written as `str` writes them."""
    return all(str(int(n)) == n for n in re.findall(r"\d+", path))


def test_natural_order() -> None:
    paths = ["layer10.2", "layer2.10", "layer2.9", "fc", "layer2"]
    assert sorted(paths, key=natural_key) == ["fc", "layer2", "layer2.9", "layer2.10", "layer10.2"]
    assert sorted(paths) != sorted(paths, key=natural_key)  # the twin: plain sorting puts layer10 first
    assert natural_key("x²") == [(1, 0, "x²")]  # a superscript is a digit to `isdigit`, no number to `int`


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_scripted_module_is_refused_by_name() -> None:
    scripted = torch.jit.script(nn.Linear(1, 1))
    with pytest.raises(UnsupportedModel, match="pass the module that it was made from"):
        unwrap(scripted)
