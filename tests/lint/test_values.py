"""What is known of values: their paths, what they are made of, and what is in them."""

from __future__ import annotations

import pytest

from frostline.lint.values import Value, is_below, owner_of, related

BODY, HEAD = Value("parameters", path="body"), Value("parameters", path="head")


def paths(value: Value) -> list[str]:
    return [each.path for each in value.sources()]


def test_a_path_without_what_loops_put_behind_it():
    assert [owner_of(path) for path in ("a", "a.*", "a.b.*.*", ".*", "a.*.b", "")] == ["a", "a", "a.b", "", "a.*.b", ""]


@pytest.mark.parametrize(
    ("path", "above", "told"),
    [
        ("model", "model", True),
        ("model.fc", "model", True),
        ("model[0]", "model", True),
        ("model2", "model", False),
        ("model", "model.fc", False),
        ("a.model", "model", False),
    ],
)
def test_what_lies_below(path: str, above: str, told: bool):
    assert is_below(path, above) is told
    assert related(path, above) is (told or is_below(above, path))


def test_the_same_value_under_another_path():
    value = Value("module", "torch.nn.Linear", "a", sure=False)
    assert value.at("b") == Value("module", "torch.nn.Linear", "b", sure=False)
    assert value.path == "a"


def test_sources_are_the_parts_of_lists_groups_and_sums():
    groups = Value(
        "list", items=(Value("group", items=(BODY,)), Value("group", items=(Value("tuple", items=(HEAD,)),)))
    )
    assert paths(groups) == ["body", "head"]
    assert paths(Value("parameters", items=(BODY, HEAD))) == ["body", "head"]
    assert paths(BODY) == ["body"]
    assert Value("list", items=(None, BODY)).sources() == [Value("unknown"), BODY]
    assert Value("list").sources() == []


def test_what_a_list_leaves_out_its_parts_leave_out():
    filtered = Value(
        "list", items=(BODY, Value("parameters", path="head", filtered=True, tests=("a",))), filtered=True, tests=("b",)
    )
    assert [(each.path, each.filtered, each.tests) for each in filtered.sources()] == [
        ("body", True, ("b",)),
        ("head", True, ("a", "b")),
    ]


def test_the_size_counts_everything_inside_and_does_not_take_long():
    value = Value("const")
    for _ in range(200):
        value = Value("list", items=(value, value, None))
    assert value.size == 2**201 - 1
    assert (BODY.size, Value("list", items=(BODY, None, HEAD)).size) == (1, 3)
