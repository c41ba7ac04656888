"""A plan on paper: there and back, for one checkpoint only, and nothing taken on trust."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from frostline import durable
from frostline.checkpoint import open_checkpoint, plan_load, save_plan
from frostline.checkpoint.paper import check_same_files, plan_told, read_plan
from frostline.errors import CheckpointError, StorageFull

Small = tuple[nn.Module, Path, dict[str, Any]]


def test_what_is_written_is_read_again(small: Small, tmp_path: Path):
    model, path, arguments = small
    plan = plan_load(model, path, **arguments)
    save_plan(plan, tmp_path / "plan.json")
    told = read_plan(tmp_path / "plan.json")
    assert told.rows == plan.rows
    assert (told.name, told.model, told.complete) == ("small.pt", "SmallNet", True)
    assert (told.take, told.stripped) == (None, ("module",))
    assert told.sha256 == {"small.pt": hashlib.sha256(path.read_bytes()).hexdigest()}
    again = plan_told(told.text, "there")
    assert again == told
    assert "\n" not in told.text


def test_every_kind_of_row_is_among_them(small: Small):
    model, path, arguments = small
    rows = plan_load(model, path, **arguments).rows
    assert {row.verdict for row in rows} == {
        "same",
        "renamed",
        "cast",
        "adapted:input-channels",
        "adapted:position-embedding",
        "adapted:scalar",
        "adapted:conv-linear",
        "filled:0",
        "kept-init",
        "dropped",
    }


def test_the_hash_is_of_every_file(tmp_path: Path):
    state = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    index: dict[str, str] = {}
    for number, name in enumerate(state):
        save_file({name: state[name]}, tmp_path / f"{number}.safetensors")
        index[name] = f"{number}.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    plan = plan_load(nn.Linear(2, 1), tmp_path / "model.safetensors.index.json")
    save_plan(plan, tmp_path / "plan")
    told = read_plan(tmp_path / "plan")
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in plan.source.files}
    assert told.sha256 == expected
    assert {"0.safetensors", "1.safetensors"} <= told.sha256.keys()
    check_same_files(told, open_checkpoint(tmp_path / "model.safetensors.index.json"), "plan")
    save_file({"bias": torch.zeros(1)}, tmp_path / "1.safetensors")
    with pytest.raises(CheckpointError, match=r"differing: 1\.safetensors\n  fix: plan again"):
        check_same_files(told, open_checkpoint(tmp_path / "model.safetensors.index.json"), "plan")


def test_a_plan_for_a_state_dict_is_for_any(tmp_path: Path):
    model = nn.Linear(2, 1)
    save_plan(plan_load(model, model.state_dict()), tmp_path / "plan")
    told = read_plan(tmp_path / "plan")
    assert told.sha256 == {}
    torch.save(model.state_dict(), tmp_path / "a.pt")
    check_same_files(told, open_checkpoint(tmp_path / "a.pt"), "plan")


def test_a_failure_leaves_the_old_file(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, path, arguments = small
    plan = plan_load(model, path, **arguments)
    (tmp_path / "plan").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(StorageFull, match="no space left on the device"):
        save_plan(plan, tmp_path / "plan")
    assert (tmp_path / "plan").read_text() == "old"
    assert not [file for file in tmp_path.iterdir() if durable.is_partial(file)]


# What is no plan


@pytest.fixture
def paper(small: Small, tmp_path: Path) -> dict[str, Any]:
    model, path, arguments = small
    save_plan(plan_load(model, path, **arguments), tmp_path / "plan.json")
    return json.loads((tmp_path / "plan.json").read_text())


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"", b"{", b"[" * 100_000, b"null", b"3", b'"a"', b"[]", b"{}"])
def test_a_file_that_is_no_plan(content: bytes | None, tmp_path: Path):
    if content is not None:
        (tmp_path / "plan").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"plan(?s:.*)\n  fix: frostline plan \.\.\. -o"):
        read_plan(tmp_path / "plan")


def test_a_folder_is_no_plan(tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_plan(tmp_path)


def test_a_plan_of_another_version(paper: dict[str, Any]):
    paper["schema_version"] = "2\x1b"
    with pytest.raises(CheckpointError, match=r"the plan in x is of another version than 1: 2\\x1b\n  fix: plan again"):
        plan_told(json.dumps(paper), "x")


def edit(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(paper: dict[str, Any]) -> None:
        *way, last = [int(part) if part.isdecimal() else part for part in path.split("/")]
        inner: Any = paper
        for part in way:
            inner = inner[part]
        inner[last] = value

    return change


HOSTILE = [
    ("rows", {"a": 1}),
    ("rows", "abc"),
    ("rows", [3]),
    ("rows/0", None),
    ("rows/0/target", ["a"]),
    ("rows/0/target", 5),
    ("rows/0/target", None),  # loaded, and it does not say where
    ("rows/0/target", ""),
    ("rows/0/source", None),
    ("rows/0/source", {}),
    ("rows/0/verdict", 5),
    ("rows/0/verdict", None),
    ("rows/0/verdict", ""),
    ("rows/0/verdict", "samest"),
    ("rows/0/verdict", "missing:x"),
    ("rows/0/why", []),
    ("rows/0/confidence", {}),
    ("rows/0/dtype_target", 32),
    ("rows/0/shape_target", "33"),
    ("rows/0/shape_target", [1.5]),
    ("rows/0/shape_target", ["3"]),
    ("rows/0/shape_target", None),
    ("rows/0/shape_target", [float("inf")]),
    ("rows/0/shape_source", 3),
    ("rows/0/operations", {}),
    ("rows/0/operations", "abc"),
    ("rows/0/operations", [["cast"]]),
    ("rows/0/operations", [{"name": [], "arguments": {}}]),
    ("rows/0/operations", [{"name": "cast", "arguments": [1]}]),
    ("rows/0/operations", [{"name": "cast"}]),
    ("rows/0/extra", 1),
    ("asked", None),
    ("asked/take", 5),
    ("asked/take", ["a"]),
    ("source", []),
    ("source/stripped", "module"),
    ("source/stripped", [["module"]]),
    ("source/name", 5),
    ("model", None),
    ("complete", "yes"),
    ("complete", None),
    ("sha256", [1]),
    ("sha256", {"small.pt": 5}),
]


@pytest.mark.parametrize(("path", "value"), HOSTILE)
def test_a_plan_of_other_types_is_refused(path: str, value: Any, paper: dict[str, Any]):
    plan_told(json.dumps(paper), "x")
    edit(path, value)(paper)
    with pytest.raises(CheckpointError, match=r"x holds no plan: \w+: (?s:.*)\n  fix: frostline plan"):
        plan_told(json.dumps(paper), "x")


@pytest.mark.parametrize("key", ["schema_version", "rows", "asked", "source", "model", "complete"])
def test_a_plan_that_lacks_something_is_refused(key: str, paper: dict[str, Any]):
    del paper[key]
    with pytest.raises(CheckpointError, match=f"x holds no plan: KeyError: '{key}'"):
        plan_told(json.dumps(paper), "x")


def test_two_rows_for_one_entry_are_refused(paper: dict[str, Any]):
    paper["rows"].append({**paper["rows"][0], "target": "stem\x07"})
    paper["rows"].append(paper["rows"][-1])
    with pytest.raises(CheckpointError, match=r"the plan in x has several rows for stem\\x07\n"):
        plan_told(json.dumps(paper), "x")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["same", "float32", "stem.weight", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "to"]), inner, max_size=2),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def plain_paper() -> str:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    state = {"0.weight": torch.ones(2, 3, 1, 1), "0.bias": torch.ones(2, dtype=torch.float64)}
    state |= {f"1.{name}": torch.ones(2) for name in ("weight", "bias", "running_mean", "running_var")}
    plan = plan_load(model, state, adapt={"0": "input-channels"})
    return json.dumps({**plan.to_json(), "sha256": {}})


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a nest of JSON, as what it is in and its key there."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in inside for place in [(value, key), *places_in(inner)]]


@given(st.data())
def test_whatever_is_changed_it_is_a_plan_or_refused(plain_paper: str, data: st.DataObject):
    paper = json.loads(plain_paper)
    inside, key = data.draw(st.sampled_from(range(len(places_in(paper)))).map(places_in(paper).__getitem__))
    inside[key] = data.draw(anything)
    said = ""
    try:
        told = plan_told(json.dumps(paper), "x")
        assert all(isinstance(row.verdict, str) for row in told.rows)
        assert plan_told(told.text, "x").text == told.text
    except CheckpointError as error:
        said = str(error)
    assert said.replace("\n", "").isprintable()
