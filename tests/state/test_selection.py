"""Selectors: every kind, what `!` leaves, wrappers, and errors that name the nearest paths."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from frostline.errors import FrostlineError, NothingSelected, SelectionError
from frostline.state.selection import exactly, select, strict_ancestors


class Trunk(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.bn1 = nn.BatchNorm2d(2)
        self.bn10 = nn.BatchNorm2d(2)


class Net(nn.Module):
    """A trunk, two heads, and a root-level token as in a ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.register_buffer("positions", torch.arange(3))
        self.trunk = Trunk()
        self.heads = nn.ModuleDict({"digit": nn.Linear(2, 10), "parity": nn.Linear(2, 2)})


TRUNK = ["trunk", "trunk.conv1", "trunk.bn1", "trunk.bn10"]
BN1_PARAMETERS = ["trunk.bn1.weight", "trunk.bn1.bias"]
STATISTICS = ["running_mean", "running_var", "num_batches_tracked"]


@pytest.fixture
def net() -> Net:
    return Net()


def below(model: nn.Module, paths: set[str]) -> tuple[set[str], set[str], set[str]]:
    """An independent account of selecting whole modules."""
    chosen = {
        path
        for path, _ in model.named_modules(remove_duplicate=False)
        if any(path == top or path.startswith(f"{top}.") or not top for top in paths)
    }
    tensors = [
        {
            f"{path}.{name}" if path else name
            for path in chosen
            for name, tensor in getattr(model.get_submodule(path), table).items()
            if tensor is not None
        }
        for table in ("_parameters", "_buffers")
    ]
    return chosen, *tensors


def as_sets(selection) -> tuple[set[str], set[str], set[str]]:
    return set(selection.modules), set(selection.parameters), set(selection.buffers)


SAME_TRUNK = {
    "path": lambda net: "trunk",
    "glob": lambda net: "tr*k",
    "glob below and itself": lambda net: re.compile(r"trunk(\..*)?"),
    "regex": lambda net: re.compile("trunk"),
    "object": lambda net: net.trunk,
    "type": lambda net: Trunk,
    "base type": lambda net: nn.Sequential,
    "predicate": lambda net: lambda path, module: path == "trunk",
    "partial": lambda net: functools.partial(lambda wanted, path, module: module is wanted, net.trunk),
    "wrapped object": lambda net: nn.DataParallel(net.trunk),
}


@pytest.mark.parametrize("kind", SAME_TRUNK)
def test_every_kind_of_selector_finds_the_trunk(net: Net, kind: str) -> None:
    selection = select(net, SAME_TRUNK[kind](net))
    assert as_sets(selection) == below(net, {"trunk"})
    assert list(selection.modules) == TRUNK
    assert selection.alone == ()
    assert list(selection.tops) == ["trunk"]
    assert selection.root is net


def test_what_is_selected_are_the_live_objects(net: Net) -> None:
    selection = select(net, "trunk")
    assert all(net.get_submodule(p) is m for p, m in selection.modules.items())
    assert all(net.get_parameter(p) is t for p, t in selection.parameters.items())
    assert all(net.get_buffer(p) is t for p, t in selection.buffers.items())


@pytest.mark.parametrize("everything", ["", "*", re.compile(".*"), nn.Module, lambda path, module: True])
def test_the_whole_model(net: Net, everything) -> None:
    selection = select(net, everything)
    assert as_sets(selection) == below(net, {""})
    assert list(selection.tops) == [""]
    assert select(net, net).modules == selection.modules


def test_a_glob_matches_modules_parameters_and_buffers(net: Net) -> None:
    assert list(select(net, "*.bias").parameters) == [
        "trunk.conv1.bias",
        "trunk.bn1.bias",
        "trunk.bn10.bias",
        "heads.digit.bias",
        "heads.parity.bias",
    ]
    assert select(net, "*.bias").modules == {}
    statistics = select(net, "*.running_*")
    assert (list(statistics.modules), list(statistics.parameters)) == ([], [])
    assert statistics.alone == tuple(statistics.buffers)
    assert list(select(net, "trunk.bn1").modules) == ["trunk.bn1"]
    assert list(select(net, "trunk.bn1*").modules) == ["trunk.bn1", "trunk.bn10"]
    assert list(select(net, "trunk.bn?").modules) == ["trunk.bn1"]
    assert list(select(net, "trunk.*").tops) == ["trunk.conv1", "trunk.bn1", "trunk.bn10"]


def test_a_single_parameter_is_alone(net: Net) -> None:
    for selector in ("cls_token", net.cls_token):
        selection = select(net, selector)
        assert as_sets(selection) == (set(), {"cls_token"}, set())
        assert selection.alone == ("cls_token",)
    both = select(net, "trunk.bn1", net.trunk.bn1.weight)
    assert both.alone == ()


def test_selectors_add_up_in_the_order_of_the_model(net: Net) -> None:
    selection = select(net, "heads.parity", nn.BatchNorm2d, net.cls_token)
    assert list(selection.modules) == ["trunk.bn1", "trunk.bn10", "heads.parity"]
    assert next(iter(selection.parameters)) == "cls_token"
    assert selection.alone == ("cls_token",)


def test_a_tied_parameter_is_found_under_all_its_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    assert list(select(model, model[0].weight).parameters) == ["0.weight", "1.weight"]
    assert list(select(model, "0").parameters) == ["0.weight"]


def test_a_shared_module_is_found_under_all_its_names() -> None:
    block = nn.BatchNorm1d(2)
    model = nn.ModuleDict({"a": block, "b": block})
    assert list(select(model, block).modules) == ["a", "b"]
    assert list(select(model, nn.BatchNorm1d).parameters) == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert list(select(model, "b").modules) == ["b"]


# ---------------------------------------------------------------- what `!` leaves


def test_all_but_the_heads_keeps_the_root_level_token(net: Net) -> None:
    selection = select(net, "!heads")
    modules, parameters, buffers = below(net, {"trunk"})
    assert as_sets(selection) == (modules, parameters | {"cls_token"}, buffers | {"positions"})
    assert selection.alone == ("cls_token", "positions")
    # The model itself is no longer wholly selected: its mode is not the selection's to set.
    assert "" not in selection.modules
    assert list(selection.tops) == ["trunk"]
    assert as_sets(select(net, "*", "!heads")) == as_sets(selection)
    # The naive way, all children but the heads, loses the token.
    naive = {f"{n}.{p}" for n, child in net.named_children() if n != "heads" for p, _ in child.named_parameters()}
    assert set(selection.parameters) - naive == {"cls_token"}


def test_a_module_that_loses_a_child_keeps_its_other_parts(net: Net) -> None:
    selection = select(net, "trunk", "!trunk.bn1")
    assert list(selection.modules) == ["trunk.conv1", "trunk.bn10"]
    assert not set(selection.parameters) & set(BN1_PARAMETERS)
    assert not {p for p in selection.buffers if p.startswith("trunk.bn1.")}
    assert "trunk.bn10.running_mean" in selection.buffers
    assert selection.alone == ()


def test_a_module_that_loses_a_tensor_keeps_its_others_one_by_one(net: Net) -> None:
    selection = select(net, "trunk", "!trunk.bn1.weight")
    assert list(selection.modules) == ["trunk.conv1", "trunk.bn10"]
    assert selection.alone == ("trunk.bn1.bias", *(f"trunk.bn1.{name}" for name in STATISTICS))


def test_leaving_out_twice(net: Net) -> None:
    selection = select(net, "!heads.digit", "!trunk.bn1*")
    assert list(selection.modules) == ["trunk.conv1", "heads.parity"]
    assert set(selection.parameters) == {
        "cls_token",
        "trunk.conv1.weight",
        "trunk.conv1.bias",
        "heads.parity.weight",
        "heads.parity.bias",
    }


def test_selectors_are_read_in_order(net: Net) -> None:
    back = select(net, "trunk", "!trunk.bn1", "trunk.bn1.weight")
    assert "trunk.bn1.weight" in back.alone
    assert "trunk.bn1" not in back.modules
    assert as_sets(select(net, "trunk", "!trunk.bn1", "trunk")) == below(net, {"trunk"})


def test_leaving_out_what_was_not_in_changes_nothing(net: Net) -> None:
    assert as_sets(select(net, "trunk", "!heads")) == below(net, {"trunk"})


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_leaving_out_is_subtraction_of_tensors(data: st.DataObject) -> None:
    net = Net()
    paths = [p for p, _ in net.named_modules() if p] + [p for p, _ in net.named_parameters()]
    plus = data.draw(st.lists(st.sampled_from(paths), unique=True, max_size=4))
    minus = data.draw(st.lists(st.sampled_from(paths), unique=True, min_size=1, max_size=4))
    everything = {p for p, _ in net.named_parameters()} | {p for p, _ in net.named_buffers()}

    def inside(tops: list[str]) -> set[str]:
        return {p for p in everything if any(p == top or p.startswith(f"{top}.") for top in tops)}

    expected = (inside(plus) if plus else everything) - inside(minus)
    selectors = [exactly(p) for p in plus] + ["!" + exactly(p) for p in minus]
    try:
        selection = select(net, *selectors)
    except NothingSelected:
        # Modules without tensors (the ModuleDict) do not count here: they were left out, or not selected.
        assert not expected
        return
    assert {*selection.parameters, *selection.buffers} == expected
    # A module is selected exactly when nothing below it is missing and it was selected with something above it.
    for path, module in selection.modules.items():
        own = {f"{path}.{n}" if path else n for n, _ in [*module.named_parameters(), *module.named_buffers()]}
        assert own <= expected
        assert not any(m == path or m.startswith(f"{path}.") for m in minus)
    assert selection.alone == tuple(
        p
        for p in [*dict(net.named_parameters()), *dict(net.named_buffers())]
        if p in expected and p.rpartition(".")[0] not in selection.modules
    )


# ---------------------------------------------------------------- wrappers


def wrapped_inside(net: Net) -> Net:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    net.trunk = checkpoint_wrapper(net.trunk)
    return net


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrappers_around_the_model_do_not_show(net: Net, wrap) -> None:
    plain, through = select(net, "trunk"), select(wrap(net), "trunk")
    assert as_sets(through) == as_sets(plain)
    assert through.root is net
    assert select(wrap(net), wrap(net.trunk)).modules.keys() == plain.modules.keys()


def test_wrappers_inside_the_model_may_be_left_out_of_the_path(net: Net) -> None:
    model = wrapped_inside(net)
    full = "trunk._checkpoint_wrapped_module.bn1"
    assert full in dict(model.named_modules())
    for selector in ("trunk.bn1", full, re.compile(r"trunk\.bn1"), exactly("trunk.bn1")):
        selection = select(model, selector)
        assert list(selection.modules) == [full]
        assert list(selection.parameters) == [f"{full}.weight", f"{full}.bias"]
    assert "trunk._checkpoint_wrapped_module" in select(model, "trunk").modules
    left = select(model, "!trunk.bn1")
    assert full not in left.modules
    assert "trunk" not in left.modules
    assert "trunk._checkpoint_wrapped_module.conv1" in left.modules


def test_a_compiled_part() -> None:
    model = nn.Sequential(torch.compile(nn.BatchNorm1d(2), backend="eager"), nn.Linear(2, 2))
    assert list(select(model, "0.weight").parameters) == ["0._orig_mod.weight"]
    assert list(select(model, "0").parameters) == ["0._orig_mod.weight", "0._orig_mod.bias"]


# ---------------------------------------------------------------- names with special characters


def test_names_that_look_like_globs() -> None:
    model = nn.ModuleDict({name: nn.Linear(1, 1) for name in ("a*", "ab", "a[0]", "a0", "a?", "[!x]")})
    assert list(select(model, "a*").tops) == ["a*", "ab", "a[0]", "a0", "a?"]
    for name in model:
        assert list(select(model, exactly(name)).modules) == [name]
        assert list(select(model, re.compile(re.escape(name))).modules) == [name]
    assert list(select(model, "a[0]").modules) == ["a0"]


def test_the_fix_in_the_message_works_for_names_that_look_like_globs() -> None:
    model = nn.ModuleDict({"block[0]": nn.Linear(1, 1)})
    with pytest.raises(NothingSelected) as caught:
        select(model, "blocks[0]")
    fix = re.search(r"fix: use '(.+)' as the selector", str(caught.value))
    assert fix is not None
    assert list(select(model, fix[1]).modules) == ["block[0]"]


@given(st.text(st.characters(exclude_characters="."), min_size=1, max_size=5), st.text(max_size=6))
def test_exactly_matches_one_path(name: str, other: str) -> None:
    from frostline.state.names import matches

    assert matches(name, exactly(name))
    if other != name and "_orig_mod" not in other:
        assert not matches(other, exactly(name))


# ---------------------------------------------------------------- errors


def test_nothing_selected_in_full(net: Net) -> None:
    with pytest.raises(NothingSelected) as caught:
        select(net, "trunc.bn1")
    assert str(caught.value) == (
        "pattern 'trunc.bn1' matched nothing in Net (8 modules, 18 tensors)\n"
        "  nearest names: trunk.bn1, trunk.bn10, trunk.conv1, trunk.bn1.bias, trunk.bn10.bias, "
        "trunk.bn1.weight, trunk.bn10.weight, trunk.bn1.running_mean\n"
        "  fix: use 'trunk.bn1' as the selector"
    )
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, FrostlineError)


def test_a_selector_without_anything_near_gets_the_top_level_names(net: Net) -> None:
    with pytest.raises(NothingSelected) as caught:
        select(net, "zzz")
    assert str(caught.value).endswith(
        "\n  nearest names: trunk, heads, cls_token, positions\n  fix: name one of these, or a part inside them"
    )


@pytest.mark.parametrize(
    ("selector", "fix"),
    [
        ("!trunc", "use '!trunk' as the selector"),
        ("trunc.bn*", "use 'trunk.bn*' as the selector"),
        ("!*.con[v]1.wieght", "use '!*.con[v]1.weight' as the selector"),
        ("trunk.btn1[0-9]", "use 'trunk.bn1[0-9]' as the selector"),
        ("net.trunk.bn1", "leave out 'net.', which is not in this model: use 'trunk.bn1' as the selector"),
        ("!net.trunk.*", "leave out 'net.', which is not in this model: use '!trunk.*' as the selector"),
    ],
)
def test_the_fix_keeps_what_was_meant_and_selects_something(net: Net, selector: str, fix: str) -> None:
    with pytest.raises(NothingSelected) as caught:
        select(net, selector)
    assert str(caught.value).endswith(f"\n  fix: {fix}")
    said = re.search("use '(.+)' as the selector", fix)
    assert said is not None
    assert select(net, said[1]).parameters


@pytest.mark.parametrize(
    ("selector", "python", "shell"),
    [
        ("trunk.bn1,heads", "'trunk.bn1', 'heads'", "--freeze trunk.bn1 --freeze heads"),
        ("!trunc, heads", "'!trunk', '!heads'", "--freeze '!trunk' --freeze '!heads'"),
        ("trunc.bn*,zzz", "'trunk.bn*', 'zzz'", "--freeze 'trunk.bn*' --freeze zzz"),
    ],
)
def test_several_in_one_string_are_taken_apart(net: Net, selector: str, python: str, shell: str) -> None:
    with pytest.raises(NothingSelected) as caught:
        select(net, selector)
    assert str(caught.value).endswith(f"\n  fix: use each as a selector of its own: {python}; in a shell: {shell}")


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ("!hed", "pattern '!hed' matched nothing"),
        (re.compile("trunk.bn"), "regular expression 'trunk.bn' matched nothing"),
        (
            nn.Linear(1, 1),
            "this Linear object matched nothing in Net (8 modules, 18 tensors)\n  fix: pass an object of",
        ),
        (nn.Parameter(torch.zeros(2, 3)), "this parameter of shape (2, 3) matched nothing"),
        (
            nn.LSTM,
            (
                "type LSTM matched nothing in Net (8 modules, 18 tensors)\n"
                "  types present: Net, Trunk, Conv2d, BatchNorm2d, ModuleDict, Linear"
            ),
        ),
        (lambda path, module: False, "predicate <lambda> matched nothing"),
        (functools.partial(lambda *_: False), "predicate partial matched nothing"),
    ],
)
def test_every_kind_of_selector_says_what_it_was(net: Net, selector, text: str) -> None:
    with pytest.raises(NothingSelected) as caught:
        select(net, "trunk", selector)
    assert str(caught.value).startswith(text)


def test_the_copy_of_a_module_is_another_module(net: Net) -> None:
    import copy

    with pytest.raises(NothingSelected, match="a copy"):
        select(net, copy.deepcopy(net).trunk)


@pytest.mark.parametrize(
    ("selectors", "text"),
    [
        ((), 'select: no selector was given.\n  fix: name a part, or "*" for the whole model'),
        (
            (3,),
            "select: 3 is an int, which is no selector.\n  fix: name the part by its path, which is a string: '3'",
        ),
        (
            (["trunk"],),
            (
                "select: ['trunk'] is a list, which is no selector.\n"
                "  fix: pass each selector as an argument of its own: freeze(model, *names)"
            ),
        ),
        ((2.5,), "select: 2.5 is a float, which is no selector.\n  fix: pass a glob, a compiled regular expression"),
        ((None,), "select: None is a NoneType, which is no selector."),
    ],
)
def test_wrong_usage(net: Net, selectors: tuple[object, ...], text: str) -> None:
    with pytest.raises(SelectionError) as caught:
        select(net, *selectors)  # type: ignore[arg-type]
    assert str(caught.value).startswith(text)
    assert not isinstance(caught.value, NothingSelected)


@pytest.mark.parametrize("selectors", [("trunk", "!trunk"), ("!*",), ("!",), ("cls_token", "!cls_token")])
def test_nothing_left(net: Net, selectors: tuple[str, ...]) -> None:
    with pytest.raises(NothingSelected) as caught:
        select(net, *selectors)
    shown = ", ".join(f"pattern {s!r}" for s in selectors)
    assert str(caught.value) == (
        f"select: nothing is left of Net (8 modules, 18 tensors) after {shown}\n"
        "  fix: leave out less, or name what should be selected"
    )


def test_a_large_model_stays_within_reach() -> None:
    model = nn.Sequential(*[nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)) for _ in range(1000)])
    selection = select(model, "*", "!*.0", "!7*")
    assert sum(1 for p in selection.modules if p.endswith(".1")) == 1000 - 111
    assert len(selection.parameters) == 2 * (1000 - 111)
    with pytest.raises(NothingSelected) as caught:
        select(model, "backbone.layer1")
    assert len(str(caught.value)) < 400


def test_strict_ancestors() -> None:
    assert strict_ancestors(["a.b.c", "a.b.d", "e", ""]) == {"", "a", "a.b"}
    assert strict_ancestors([]) == strict_ancestors([""]) == set()
