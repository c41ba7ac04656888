"""Checkpoints under other names, written with the plan that made them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from frostline import durable
from frostline.checkpoint import ClassRows, convert, plan_load, save_plan, verify
from frostline.checkpoint.convert import PLAN
from frostline.checkpoint.norm_settings import HEADER
from frostline.errors import CheckpointError, StorageFull
from frostline.state.digest import digest

Small = tuple[nn.Module, Path, dict[str, Any]]


def header_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(digest(one[name]) == digest(other[name]) for name in one)


def expected_of(path: Path) -> dict[str, Tensor]:
    """What the plan of the small model makes of its checkpoint, by hand."""
    state = {name.removeprefix("module."): value for name, value in torch.load(path)["state_dict"].items()}
    grid = state["position"][0, 1:].double().T.reshape(1, 4, 2, 2)
    grown = F.interpolate(grid, (3, 3), mode="bicubic", antialias=True, align_corners=False)
    return {
        "stem.weight": state["conv.weight"].double().sum(1, keepdim=True).float(),
        "stem.bias": state["conv.bias"],
        **{f"norm.{name}": state[f"norm.{name}"] for name in ("weight", "bias", "running_mean", "running_var")},
        "norm.num_batches_tracked": torch.tensor(0),
        "position": torch.cat([state["position"][:, :1], grown.reshape(1, 4, 9).transpose(1, 2).float()], dim=1),
        "scale": state["scale"][0],
        **{f"{side}.{name}": state[f"both.{name}"] for side in ("left", "right") for name in ("weight", "bias")},
        "half.weight": state["half.weight"].float(),
        "half.bias": state["half.bias"].float(),
        "head.weight": state["head.weight"].reshape(3, 4),
        "head.bias": state["head.bias"],
    }


# With every operation


def test_every_operation_without_the_model(small: Small, tmp_path: Path):
    model, path, arguments = small
    before = digest_of(model)
    plan = plan_load(model, path, **arguments)
    save_plan(plan, tmp_path / "plan.json")
    count = convert(path, tmp_path / "plan.json", tmp_path / "out.safetensors")
    written = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert same(written, expected_of(path))
    assert count == len(written) == 17
    assert not [name for name in written if name.startswith("fresh")]  # what the model keeps is not written
    assert digest_of(model) == before
    told = json.loads(header_of(tmp_path / "out.safetensors")[PLAN])
    assert told == json.loads((tmp_path / "plan.json").read_text())


def test_writing_from_the_live_plan_gives_the_same_tensors(small: Small, tmp_path: Path):
    model, path, arguments = small
    plan = plan_load(model, path, **arguments)
    before = digest_of(model)
    plan.write(tmp_path / "out.safetensors")
    assert digest_of(model) == before
    assert same(safetensors.torch.load_file(tmp_path / "out.safetensors"), expected_of(path))
    metadata = header_of(tmp_path / "out.safetensors")
    assert metadata["format"] == "pt"
    assert json.loads(metadata[HEADER]) == {"norm": {"type": "BatchNorm2d", "eps": 1e-3}}
    # And what is applied is what is written.
    plan.apply()
    written = safetensors.torch.load_file(tmp_path / "out.safetensors")
    state = model.state_dict()
    assert same({name: state[name] for name in written}, written)


def test_what_was_written_loads_by_name_alone(small: Small, tmp_path: Path):
    model, path, arguments = small
    plan_load(model, path, **arguments).write(tmp_path / "out.safetensors")
    plan = plan_load(model, tmp_path / "out.safetensors", keep="fresh")
    assert {row.verdict for row in plan.rows} == {"same", "kept-init"}
    plan.apply()
    assert same({n: v for n, v in model.state_dict().items() if not n.startswith("fresh")}, expected_of(path))


def digest_of(model: nn.Module) -> dict[str, str]:
    return {name: digest(value) for name, value in model.state_dict().items()}


def test_the_same_plan_gives_the_same_bytes(small: Small, tmp_path: Path):
    model, path, arguments = small
    save_plan(plan_load(model, path, **arguments), tmp_path / "plan.json")
    for name in ("a", "b"):
        convert(path, tmp_path / "plan.json", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_of_classes_need_the_model(tmp_path: Path):
    model = nn.Sequential(nn.Linear(4, 3))
    torch.save({"0.weight": torch.ones(2, 4), "0.bias": torch.ones(2)}, tmp_path / "a.pt")
    plan = plan_load(model, tmp_path / "a.pt", adapt={"0": ClassRows(["a", "b"], ["b", "x", "a"])})
    save_plan(plan, tmp_path / "plan")
    with pytest.raises(CheckpointError, match=r"0\.bias -> 0\.bias: class-rows\(of=3\): .*there is no model here"):
        convert(tmp_path / "a.pt", tmp_path / "plan", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    plan.write(tmp_path / "out")
    written = safetensors.torch.load_file(tmp_path / "out")
    assert torch.equal(written["0.weight"][[0, 2]], torch.ones(2, 4))
    assert torch.equal(written["0.weight"][1], model[0].weight[1])  # type: ignore[union-attr, index]
    assert verify(tmp_path / "a.pt", tmp_path / "out").holds


def test_rows_of_as_many_classes_in_another_order(tmp_path: Path):
    torch.save({"0.weight": torch.tensor([[1.0], [2.0]])}, tmp_path / "a.pt")
    model = nn.Sequential(nn.Linear(1, 2, bias=False))
    plan_load(model, tmp_path / "a.pt", adapt={"0": ClassRows(["a", "b"], ["b", "a"])}).write(tmp_path / "out")
    assert safetensors.torch.load_file(tmp_path / "out")["0.weight"].tolist() == [[2.0], [1.0]]
    assert verify(tmp_path / "a.pt", tmp_path / "out").holds


def test_a_part_of_a_container_and_wrapper_names_of_the_model_itself(tmp_path: Path):
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    state = {"student": {"x.w": torch.zeros(1)}, "teacher": {"_orig_mod.trunk.module.weight": torch.ones(2, 2)}}
    state["teacher"] |= {"_orig_mod.trunk.module.bias": torch.ones(2), "_orig_mod.head.weight": torch.ones(3)}
    torch.save(state, tmp_path / "a.pt")
    plan = plan_load(Inner(), tmp_path / "a.pt", take="teacher.trunk")
    save_plan(plan, tmp_path / "plan")
    assert convert(tmp_path / "a.pt", tmp_path / "plan", tmp_path / "out") == 2
    assert set(safetensors.torch.load_file(tmp_path / "out")) == {"module.weight", "module.bias"}
    checked = verify(tmp_path / "a.pt", tmp_path / "out")
    assert checked.holds
    assert {(row.source, row.verdict) for row in checked.rows if row.target is None} == {("head.weight", "left out")}
    assert plan_load(Inner(), tmp_path / "out").coverage == 1


def test_tied_tensors_are_written_under_each_name(tmp_path: Path):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    torch.save({"0.weight": torch.ones(2, 2)}, tmp_path / "a.pt")
    plan_load(model, tmp_path / "a.pt").write(tmp_path / "out")
    assert set(safetensors.torch.load_file(tmp_path / "out")) == {"0.weight", "1.weight"}
    assert verify(tmp_path / "a.pt", tmp_path / "out").holds


# The real checkpoint, for a net of another structure


class OtherBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm_a, self.norm_b = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv_a = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.conv_b = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(self.norm_b(self.conv_b(F.relu(self.norm_a(self.conv_a(x))))) + shortcut)


class OtherNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(64, 10)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        sizes = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        self.stages = nn.ModuleList(
            nn.ModuleList([OtherBlock(a, b, s), OtherBlock(b, b, 1), OtherBlock(b, b, 1)]) for a, b, s in sizes
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
        return self.classifier(x.mean((2, 3)))


RULES = {
    f"layer{{i}}.{{j}}.{old}{n}": f"stages.{{i-1}}.{{j}}.{new}_{'ab'[n - 1]}"
    for n in (1, 2)
    for old, new in (("conv", "conv"), ("bn", "norm"))
} | {"conv1": "stem.0", "bn1": "stem.1", "linear": "classifier"}


@pytest.mark.real_data
def test_the_real_checkpoint_in_a_net_of_another_structure(
    resnet20_file: Path, resnet20: Callable[..., nn.Module], tmp_path: Path
):
    plan = plan_load(OtherNet(), resnet20_file, rename=RULES)
    save_plan(plan, tmp_path / "plan.json")
    assert convert(resnet20_file, tmp_path / "plan.json", tmp_path / "out.safetensors") == 97 + 19
    written = safetensors.torch.load_file(tmp_path / "out.safetensors")
    state = torch.load(resnet20_file, weights_only=True, map_location="cpu")["state_dict"]
    assert sorted(digest(value) for name, value in written.items() if "num_batches" not in name) == sorted(
        digest(value) for value in state.values()
    )
    checked = verify(resnet20_file, tmp_path / "out.safetensors")
    assert checked.holds
    assert len(checked.rows) == 116

    other = OtherNet()
    report = plan_load(other, tmp_path / "out.safetensors").apply()
    assert report.coverage == 1
    assert report.norms == (19, 19)
    net = resnet20()
    net.load_state_dict({name.removeprefix("module."): value for name, value in state.items()}, strict=False)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(other.eval()(images), net.eval()(images))


# What is refused


@pytest.fixture
def planned(small: Small, tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    """The checkpoint, the plan for it, and what that says."""
    model, path, arguments = small
    save_plan(plan_load(model, path, **arguments), tmp_path / "plan.json")
    return path, tmp_path / "plan.json", json.loads((tmp_path / "plan.json").read_text())


def refused(path: Path, plan: Path, said: str) -> None:
    """Converting is refused, and what was there before is still there."""
    out = path.parent / "out.safetensors"
    out.write_bytes(b"old")
    with pytest.raises(CheckpointError, match=said) as caught:
        convert(path, plan, out)
    assert str(caught.value).replace("\n", "").isprintable()
    assert out.read_bytes() == b"old"
    assert not [file for file in path.parent.iterdir() if durable.is_partial(file)]


def test_another_checkpoint_is_refused_by_its_hash(planned: tuple[Path, Path, dict[str, Any]]):
    path, plan, _ = planned
    state = torch.load(path)
    state["state_dict"]["module.norm.bias"][0] += 1
    torch.save(state, path)
    refused(path, plan, r"plan\.json was made for another checkpoint than small\.pt\n  differing: small\.pt")


def test_what_is_read_is_not_replaced(planned: tuple[Path, Path, dict[str, Any]]):
    path, plan, _ = planned
    for out in (path, plan):
        before = out.read_bytes()
        with pytest.raises(CheckpointError, match="is what is read"):
            convert(path, plan, out)
        assert out.read_bytes() == before
    out = path.with_name("other.safetensors")
    assert convert(path, plan, out) == convert(path, plan, out)  # another file is replaced, as it says


def test_incomplete_plans_are_refused(small: Small, tmp_path: Path):
    model, path, arguments = small
    plan = plan_load(model, path, **{**arguments, "keep": ()})
    save_plan(plan, tmp_path / "plan.json")
    refused(path, tmp_path / "plan.json", "is an incomplete plan")
    # Not even if the plan claims to be complete.
    text = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**text, "complete": True}))
    refused(path, tmp_path / "plan.json", "is an incomplete plan")
    with pytest.raises(CheckpointError, match=r"does not fit SmallNet"):
        plan.write(tmp_path / "out.safetensors")


def test_a_plan_that_loads_nothing_or_says_nothing_of_a_tensor_is_refused(planned: tuple[Path, Path, dict[str, Any]]):
    path, plan, paper = planned
    rows = paper["rows"]
    plan.write_text(json.dumps({**paper, "rows": []}))
    refused(path, plan, "is an incomplete plan")
    plan.write_text(json.dumps({**paper, "rows": [row for row in rows if row["verdict"] == "dropped"]}))
    refused(path, plan, "is an incomplete plan")
    for source in ("old.weight", "norm.bias"):
        plan.write_text(json.dumps({**paper, "rows": [row for row in rows if row["source"] != source]}))
        refused(path, plan, rf"plan\.json says nothing of {source} in small\.pt\n  fix: plan again")


def test_values_that_a_cast_would_lose_are_refused(small: Small, tmp_path: Path):
    model, path, arguments = small
    arguments["adapt"].pop("half")
    state = torch.load(path)
    state["state_dict"]["module.half.bias"][1] = 0.1
    torch.save(state, path)
    plan = plan_load(model, path, **arguments)
    save_plan(plan, tmp_path / "plan.json")
    refused(path, tmp_path / "plan.json", r"half\.bias -> half\.bias: cast\(to=float32.*float64 .* loses values")
    (tmp_path / "live").write_bytes(b"old")
    with pytest.raises(CheckpointError, match="loses values"):
        plan.write(tmp_path / "live")
    assert (tmp_path / "live").read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_file(planned: tuple[Path, Path, Any], monkeypatch: pytest.MonkeyPatch):
    path, plan, _ = planned
    out = path.parent / "out.safetensors"
    out.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(StorageFull, match=r"out\.safetensors could not be written"):
        convert(path, plan, out)
    assert out.read_bytes() == b"old"
    assert not [file for file in path.parent.iterdir() if durable.is_partial(file)]


HUGE = 2**62
OPERATIONS = [
    ("resize", {}),
    ("cast", {}),
    ("cast", {"to": "float32"}),
    ("cast", {"to": "load", "lossy": True}),
    ("cast", {"to": None, "lossy": True}),
    ("cast", {"\x1b": 1}),
    ("cast", {"to": "float16", "lossy": True}),  # another type than the row says
    ("input-channels", {"to": HUGE}),
    ("input-channels", {"to": float("inf")}),
    ("input-channels", {"to": float("nan")}),
    ("input-channels", {"to": 0}),
    ("input-channels", {"to": -3}),
    ("input-channels", {"to": "3"}),
    ("input-channels", {"to": 2**70}),
    ("position-embedding", {"prefix": 0, "grid": [HUGE, HUGE], "to": [1, 1]}),
    ("position-embedding", {"prefix": HUGE, "grid": [1, 1], "to": [1, 1]}),
    ("position-embedding", {"prefix": 0, "grid": "abc", "to": None}),
    ("position-embedding", {"prefix": 0, "grid": [6, 6], "to": [HUGE, 1]}),
    ("position-embedding", {"prefix": 0, "grid": [], "to": []}),
    ("conv-linear", {"to": [HUGE, HUGE]}),
    ("conv-linear", {"to": [-1, -1]}),
    ("conv-linear", {"to": [[]]}),
    ("scalar", {"to": {}}),
    ("class-rows", {"rows": [[0, 0]], "of": 4}),
    ("conv-linear", {"to": [4, 1, 3, 3], "more": 1}),
    ("conv-linear", {"_": 1, "value": 2}),
]


@pytest.mark.parametrize(("name", "arguments"), OPERATIONS)
def test_operations_that_make_no_sense_are_refused(
    name: str, arguments: dict[str, Any], planned: tuple[Path, Path, dict[str, Any]]
):
    path, plan, paper = planned
    (row,) = [row for row in paper["rows"] if row["target"] == "stem.weight"]
    row["operations"] = [{"name": name, "arguments": arguments}]
    plan.write_text(json.dumps(paper))
    refused(path, plan, r"conv\.weight -> stem\.weight: |stem\.weight should have shape")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape_target": [HUGE]}, "stem.bias should have shape"),
        ({"shape_target": [-4]}, "stem.bias should have shape"),
        ({"shape_target": []}, "stem.bias should have shape"),
        ({"dtype_target": "float16"}, "stem.bias should have shape"),
        ({"dtype_target": "nn"}, "a type 'nn', which torch does not have"),
        ({"dtype_target": None}, "a type None"),
        ({"source": "nothing\x1b"}, r"says nothing of conv\.bias"),
        ({"target": "__metadata__"}, "cannot hold these names"),
        ({"target": "\ud800"}, "cannot hold these names"),
        ({"verdict": "filled:0", "shape_target": [HUGE]}, "which is no counter"),
        ({"verdict": "filled:0", "shape_target": [4]}, r"fills stem\.bias of shape \(4,\), which is no counter"),
        ({"verdict": "filled:0", "shape_target": [-1]}, "which is no counter"),
        ({"verdict": "filled:0", "shape_target": None}, "which is no counter"),
    ],
)
def test_rows_that_make_no_sense_are_refused(
    change: dict[str, Any], said: str, planned: tuple[Path, Path, dict[str, Any]]
):
    path, plan, paper = planned
    (row,) = [row for row in paper["rows"] if row["target"] == "stem.bias"]
    row.update(change)
    plan.write_text(json.dumps(paper))
    refused(path, plan, said)


def test_a_tensor_that_is_not_there_is_named(planned: tuple[Path, Path, dict[str, Any]]):
    path, plan, paper = planned
    (row,) = [row for row in paper["rows"] if row["target"] == "right.bias"]  # of two that take it
    row["source"] = "nothing\x1b"
    plan.write_text(json.dumps(paper))
    refused(path, plan, r"small\.pt has no tensor nothing\\x1b, which the plan takes")


@pytest.mark.parametrize("depth", [200, 900, 990, 100_000])
def test_deep_nesting_anywhere_is_refused_or_does_no_harm(depth: int, planned: tuple[Path, Path, dict[str, Any]]):
    path, plan, paper = planned
    text = json.dumps({**paper, "more": 0})
    plan.write_text(text.replace('"more": 0', f'"more": {"[" * depth}{"]" * depth}'))
    try:
        convert(path, plan, path.parent / "deep")
    except CheckpointError:
        assert depth > 500
    else:
        assert same(safetensors.torch.load_file(path.parent / "deep"), expected_of(path))


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 3, HUGE, 2**70, 1.5, float("nan"), float("inf")])
    | st.sampled_from(["same", "filled:0", "missing", "float32", "int64", "norm.bias", "", "cast", "scalar", "\x1b"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "to"]), inner, max_size=2),
    max_leaves=4,
)


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a nest of JSON, as what it is in and its key there."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in inside for place in [(value, key), *places_in(inner)]]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_changed_in_a_plan_it_is_carried_out_or_refused(
    planned: tuple[Path, Path, dict[str, Any]], data: st.DataObject
):
    path, plan, original = planned
    paper = json.loads(json.dumps(original))
    places = places_in(paper)
    inside, key = places[data.draw(st.integers(0, len(places) - 1))]
    inside[key] = data.draw(anything)
    plan.write_text(json.dumps(paper))
    out = path.parent / "fuzzed"
    out.write_bytes(b"old")
    said = ""
    try:
        convert(path, plan, out)
    except CheckpointError as error:
        said = str(error)
    assert "\x1b" not in said
    if said:
        assert out.read_bytes() == b"old"
    else:
        assert verify(path, out).holds
