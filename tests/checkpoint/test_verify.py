"""A converted checkpoint is compared with the original by value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from frostline.checkpoint import ClassRows, convert, plan_load, save_plan, verify
from frostline.checkpoint.convert import PLAN
from frostline.checkpoint.verify import Verification, VerifiedRow
from frostline.errors import CheckpointError

Paths = tuple[Path, Path]


@pytest.fixture
def converted(small: tuple[nn.Module, Path, dict[str, Any]], tmp_path: Path) -> Paths:
    model, path, arguments = small
    save_plan(plan_load(model, path, **arguments), tmp_path / "plan.json")
    convert(path, tmp_path / "plan.json", tmp_path / "out.safetensors")
    return path, tmp_path / "out.safetensors"


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def edit_plan(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the plan in a header, as someone could who does not know of it."""
    header, data = split(path)
    plan = json.loads(header["__metadata__"][PLAN])
    change(plan)
    header["__metadata__"][PLAN] = json.dumps(plan)
    join(path, header, data)


def row_for(plan: dict[str, Any], target: str) -> dict[str, Any]:
    (row,) = [row for row in plan["rows"] if row["target"] == target]
    return row


def bad(found: Verification) -> set[tuple[str | None, str | None, str]]:
    assert not found.holds
    return {(row.target, row.source, row.verdict) for row in found.rows if row.verdict not in {"equal", "left out"}}


# What holds


def test_every_operation_holds_and_each_tensor_is_named(converted: Paths):
    found = verify(*converted)
    assert found.holds
    assert found.by_plan
    written = safetensors.torch.load_file(converted[1])
    assert {row.target for row in found.rows if row.verdict == "equal"} == set(written)
    assert {(row.target, row.source) for row in found.rows if row.verdict == "left out"} == {(None, "old.weight")}
    assert str(found) == "holds: 17 equal, 1 left out, by the plan in its header"
    told = json.loads(json.dumps(found.to_json()))
    assert (told["holds"], told["by_plan"], len(told["rows"])) == (True, True, 18)


def test_written_from_the_live_plan_it_holds_too(small: tuple[nn.Module, Path, dict[str, Any]], tmp_path: Path):
    model, path, arguments = small
    plan_load(model, path, **arguments).write(tmp_path / "out")
    assert verify(path, tmp_path / "out").holds


def test_rows_of_classes_that_came_from_the_checkpoint_are_compared(tmp_path: Path):
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    torch.save({"0.weight": torch.ones(2, 4)}, tmp_path / "a.pt")
    plan_load(model, tmp_path / "a.pt", adapt={"0": ClassRows(["a", "b"], ["b", "x", "a"])}).write(tmp_path / "out")
    assert verify(tmp_path / "a.pt", tmp_path / "out").holds
    torch.save({"0.weight": torch.tensor([[1.0] * 4, [2.0] * 4])}, tmp_path / "a.pt")
    assert bad(verify(tmp_path / "a.pt", tmp_path / "out")) == {("0.weight", "0.weight", "differs")}


# What does not


def test_a_flipped_bit_is_found_in_whichever_tensor_it_is(converted: Paths):
    original, out = converted
    header, data = split(out)
    places = {name: row["data_offsets"] for name, row in header.items() if name != "__metadata__"}
    assert len(places) == 17
    for name, (start, end) in places.items():
        for at in {start, end - 1}:
            flipped = bytearray(data)
            flipped[at] ^= 1
            join(out, header, bytes(flipped))
            assert {(target, verdict) for target, _, verdict in bad(verify(original, out))} == {(name, "differs")}
    join(out, header, data)
    assert verify(original, out).holds


def test_the_library_of_the_format_does_not_see_it(converted: Paths):
    """The failing twin: the format has no checksum."""
    _, out = converted
    header, data = split(out)
    before = safetensors.torch.load_file(out)
    join(out, header, bytes([data[0] ^ 1]) + data[1:])
    after = safetensors.torch.load_file(out)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_changed_original_is_found(converted: Paths):
    original, out = converted
    content = torch.load(original)
    content["state_dict"]["module.norm.running_var"][2] *= 1 + 2**-20
    content["state_dict"]["module.both.bias"][0] = -content["state_dict"]["module.both.bias"][0]
    torch.save(content, original)
    assert bad(verify(original, out)) == {
        ("norm.running_var", "norm.running_var", "differs"),
        ("left.bias", "both.bias", "differs"),
        ("right.bias", "both.bias", "differs"),
    }


def test_sources_that_were_swapped_in_the_plan_are_found(converted: Paths):
    original, out = converted

    def swap(plan: dict[str, Any]) -> None:
        mean, var = row_for(plan, "norm.running_mean"), row_for(plan, "norm.running_var")
        mean["source"], var["source"] = var["source"], mean["source"]

    edit_plan(out, swap)
    assert {row[2] for row in bad(verify(original, out))} == {"differs"}
    assert {row[0] for row in bad(verify(original, out))} == {"norm.running_mean", "norm.running_var"}


def test_a_row_that_was_taken_out_of_the_plan_is_found_on_both_sides(converted: Paths):
    original, out = converted
    edit_plan(out, lambda plan: plan["rows"].remove(row_for(plan, "stem.bias")))
    assert bad(verify(original, out)) == {("stem.bias", None, "unexplained"), (None, "conv.bias", "missing")}


def test_a_tensor_that_is_called_kept_and_is_there_is_found(converted: Paths):
    original, out = converted
    edit_plan(out, lambda plan: row_for(plan, "stem.bias").update(verdict="kept-init"))
    assert bad(verify(original, out)) == {("stem.bias", "conv.bias", "unexplained")}


def test_a_tensor_that_is_not_there_is_found(converted: Paths):
    original, out = converted
    header, _ = split(out)
    tensors = safetensors.torch.load_file(out)
    for name in ("stem.bias", "norm.num_batches_tracked"):
        del tensors[name]
    tensors["extra.weight"] = torch.zeros(1)
    safetensors.torch.save_file(tensors, out, header["__metadata__"])
    assert bad(verify(original, out)) == {
        ("stem.bias", "conv.bias", "missing"),
        ("norm.num_batches_tracked", None, "missing"),
        ("extra.weight", None, "unexplained"),
    }


@pytest.mark.parametrize("value", [torch.tensor(1), torch.zeros(1, dtype=torch.int64), torch.tensor(0.0)])
def test_a_counter_of_another_value_shape_or_type_is_found(value: torch.Tensor, converted: Paths):
    original, out = converted
    header, _ = split(out)
    tensors = safetensors.torch.load_file(out)
    tensors["norm.num_batches_tracked"] = value
    safetensors.torch.save_file(tensors, out, header["__metadata__"])
    assert bad(verify(original, out)) == {("norm.num_batches_tracked", None, "differs")}


def test_a_value_of_another_type_differs_though_it_compares_equal(converted: Paths):
    original, out = converted
    header, _ = split(out)
    tensors = safetensors.torch.load_file(out)
    tensors["half.weight"] = tensors["half.weight"].half()
    safetensors.torch.save_file(tensors, out, header["__metadata__"])
    assert bad(verify(original, out)) == {("half.weight", "half.weight", "differs")}


def test_a_plan_that_leaves_everything_out_does_not_hold(converted: Paths):
    original, out = converted

    def leave_out(plan: dict[str, Any]) -> None:
        plan["rows"] = [{**row, "target": None, "verdict": "dropped"} for row in plan["rows"]]

    header, _ = split(out)
    safetensors.torch.save_file({}, out, header["__metadata__"])
    edit_plan(out, leave_out)
    found = verify(original, out)
    assert {row.verdict for row in found.rows} == {"left out"}
    assert not found.holds
    assert not Verification((), by_plan=True).holds


@pytest.mark.parametrize("plan", ["", "{", "[" * 100_000, "{}", '{"schema_version": 1, "rows": [[]]}'])
def test_a_header_that_holds_no_plan_is_refused(plan: str, converted: Paths):
    original, out = converted
    header, data = split(out)
    header["__metadata__"][PLAN] = plan
    join(out, header, data)
    with pytest.raises(CheckpointError, match=r"out\.safetensors holds no plan"):
        verify(original, out)


def test_a_source_that_the_original_does_not_have_is_refused(converted: Paths):
    original, out = converted
    edit_plan(out, lambda plan: row_for(plan, "stem.bias").update(source="nothing"))
    with pytest.raises(CheckpointError, match=r"small\.pt has no tensor nothing"):
        verify(original, out)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 3, 2**62, 2**70, 1.5, float("nan"), float("inf")])
    | st.sampled_from(["same", "filled:0", "dropped", "float32", "int64", "norm.bias", "", "cast", "scalar", "\x1b"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "to"]), inner, max_size=2),
    max_leaves=4,
)


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a nest of JSON, as what it is in and its key there."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in inside for place in [(value, key), *places_in(inner)]]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_changed_in_a_header_it_is_compared_or_refused(converted: Paths, data: st.DataObject):
    original, out = converted
    header, content = split(out)
    plan = json.loads(header["__metadata__"][PLAN])
    places = places_in(plan)
    inside, key = places[data.draw(st.integers(0, len(places) - 1))]
    inside[key] = data.draw(anything)
    header["__metadata__"][PLAN] = json.dumps(plan)
    other = out.with_name("edited")
    join(other, header, content)
    said = ""
    try:
        # With a row of the plan changed, what holds is still every tensor of the file.
        found = verify(original, other)
        equal = [row.target for row in found.rows if row.verdict == "equal"]
        assert not found.holds or set(equal) == header.keys() - {"__metadata__"}
    except CheckpointError as error:
        said = str(error)
    assert "\x1b" not in said


# Without a plan


def test_without_a_plan_names_have_to_be_the_same(tmp_path: Path):
    state = {"a.w": torch.ones(2), "b.w": torch.zeros(2), "c.w": torch.ones(1)}
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "a.pt")
    safetensors.torch.save_file(state, tmp_path / "b")
    found = verify(tmp_path / "a.pt", tmp_path / "b")
    assert found.holds
    assert str(found) == "holds: 3 equal, name by name; it carries no plan"
    other = {"a.w": -state["a.w"], "b.w": state["b.w"], "d.w": torch.ones(1)}
    safetensors.torch.save_file(other, tmp_path / "b")
    found = verify(tmp_path / "a.pt", tmp_path / "b")
    assert bad(found) == {("a.w", "a.w", "differs"), ("d.w", None, "unexplained"), (None, "c.w", "missing")}
    assert str(found).splitlines()[0] == (
        "does not hold: 1 differs, 1 equal, 1 unexplained, 1 missing, name by name; it carries no plan"
    )


def test_a_zero_of_another_sign_is_another_value(tmp_path: Path):
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "a")
    safetensors.torch.save_file({"a": -torch.zeros(2)}, tmp_path / "b")
    assert bad(verify(tmp_path / "a", tmp_path / "b")) == {("a", "a", "differs")}


def test_long_lists_are_cut_and_names_escaped():
    rows = tuple(VerifiedRow(f"a{n}\x1b", None, "unexplained") for n in range(30))
    text = str(Verification(rows, by_plan=False))
    assert "\x1b" not in text
    assert text.endswith("(+10 more; --json)")
    assert len(text.splitlines()) == 1 + 2 + 20 + 1


@pytest.mark.real_data
def test_a_flipped_bit_in_the_real_checkpoint_is_found(resnet20_file: Path, resnet20: Any, tmp_path: Path):
    plan_load(resnet20(), resnet20_file).write(tmp_path / "out")
    assert verify(resnet20_file, tmp_path / "out").holds
    header, data = split(tmp_path / "out")
    at = header["layer2.1.bn2.running_var"]["data_offsets"][0] + 5
    join(tmp_path / "out", header, data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
    name = "layer2.1.bn2.running_var"
    assert bad(verify(resnet20_file, tmp_path / "out")) == {(name, name, "differs")}
