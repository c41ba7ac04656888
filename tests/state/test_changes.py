"""The difference between two states: grouping, folding, printing, JSON."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.errors import SnapshotError
from frostline.state.changes import Change, StateDiff


def change(path: str, **fields: object) -> Change:
    base: dict[str, object] = {
        "kind": "buffer",
        "role": "norm.mean",
        "module": path.rpartition(".")[0],
        "module_type": "BatchNorm2d",
        "change": "changed",
        "before": "0" * 32,
        "after": "f" * 32,
    }
    return Change(path, **{**base, **fields})  # type: ignore[arg-type]


DIFF = StateDiff(
    [
        change("layer1.bn.running_mean", max_abs=0.5, mean_abs=0.25),
        change("layer1.bn.running_var", role="norm.var", max_abs=math.inf, mean_abs=1.0),
        change("layer1.bn.training", kind="mode", role="mode", before=False, after=True),
        change("layer2.bn.running_mean", max_abs=0.75, mean_abs=0.125),
        change("layer2.bn.running_var", role="norm.var", max_abs=math.nan, mean_abs=math.nan),
        change("fc.weight", kind="parameter", role="weight", module_type="Linear"),
        change("fc.scale", kind="config", role="dropout.p", before=0.5, after=0.0, module_type="Linear"),
    ],
    1234,
)


def test_truth_is_whether_anything_moved() -> None:
    assert DIFF
    assert not StateDiff([], 5)
    assert StateDiff([], 5) == StateDiff([], 5)


def test_paths_keep_the_order() -> None:
    assert DIFF.paths == [row.path for row in DIFF.moved]


def test_groups_by_role_and_by_module() -> None:
    assert {role: [r.path for r in rows] for role, rows in DIFF.by_role().items()} == {
        "norm.mean": ["layer1.bn.running_mean", "layer2.bn.running_mean"],
        "norm.var": ["layer1.bn.running_var", "layer2.bn.running_var"],
        "mode": ["layer1.bn.training"],
        "weight": ["fc.weight"],
        "dropout.p": ["fc.scale"],
    }
    assert {module: len(rows) for module, rows in DIFF.by_module().items()} == {"layer1.bn": 3, "layer2.bn": 2, "fc": 2}
    assert list(DIFF.by_module()) == ["layer1.bn", "layer2.bn", "fc"]
    assert [row for rows in DIFF.by_role().values() for row in rows] != []
    assert StateDiff([], 1).by_role() == StateDiff([], 1).by_module() == {}


def test_where_keeps_kinds() -> None:
    assert DIFF.where("mode").paths == ["layer1.bn.training"]
    assert DIFF.where("parameter", "buffer").paths == [r.path for r in DIFF.moved if r.kind in {"parameter", "buffer"}]
    assert DIFF.where("mode").still == 1234
    assert not DIFF.where("extra")


def test_printed_in_full() -> None:
    assert str(DIFF) == "\n".join(
        [
            "7 entries moved, 1,234 equal to the bit",
            "path                             role       module       change        max |Δ|  mean |Δ|",
            "───────────────────────────────  ─────────  ───────────  ────────────  ───────  ────────",
            "layer[1-2].bn.running_mean (x2)  norm.mean  BatchNorm2d  changed       0.75     0.25",
            "layer[1-2].bn.running_var (x2)   norm.var   BatchNorm2d  changed       nan      nan",
            "layer1.bn.training               mode       BatchNorm2d  False → True  –        –",
            "fc.weight                        weight     Linear       changed       –        –",
            "fc.scale                         dropout.p  Linear       0.5 → 0.0     –        –",
        ]
    )
    assert str(StateDiff([], 1234)) == "nothing moved: 1,234 entries equal to the bit"


def test_digits_fold_so_that_a_deep_network_stays_readable() -> None:
    paths = [f"layer{i}.{j}.bn{k}.running_mean" for i in range(1, 5) for j in range(6) for k in range(1, 4)]
    text = str(StateDiff([change(path, max_abs=0.0, mean_abs=0.0) for path in paths], 0))
    assert text.splitlines()[3:] == [
        "layer[1-4].[0-5].bn[1-3].running_mean (x72)  norm.mean  BatchNorm2d  changed  0        0"
    ]


def test_what_changed_in_different_ways_is_not_folded_together() -> None:
    rows = [change("bn1.w"), change("bn2.w", change="added"), change("bn3.w", module_type="SyncBatchNorm")]
    assert len(str(StateDiff(rows, 0)).splitlines()) == 3 + 3


def test_long_diffs_say_how_to_see_the_rest() -> None:
    rows = [change(f"{chr(97 + i // 26)}{chr(97 + i % 26)}.mean") for i in range(100)]
    lines = str(StateDiff(rows, 0)).splitlines()
    assert len(lines) == 3 + 40 + 1
    assert lines[-1] == "(+60 more rows; diff.to_json())"


def test_names_with_the_mask_character_print() -> None:
    diff = StateDiff([change("c#.bn1.mean"), change("c#.bn2.mean"), change("c1.bn1.mean")], 0)
    assert [line.split("  ")[0] for line in str(diff).splitlines()[3:]] == ["c#.bn[1-2].mean (x2)", "c1.bn1.mean"]


def test_in_a_notebook_it_is_escaped_and_complete() -> None:
    rows = [change(f"<b>{chr(97 + i // 26)}{chr(97 + i % 26)}.mean") for i in range(60)]
    text = StateDiff(rows, 7)._repr_html_()
    assert "<b>" not in text
    assert text.count("<tr>") == 61
    assert "<caption>60 moved, 7 still</caption>" in text


FIGURES = st.none() | st.floats(min_value=0, allow_infinity=True) | st.just(math.nan)
MARKS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
CHANGES = st.builds(
    Change,
    path=st.text(max_size=8),
    kind=st.sampled_from(["parameter", "buffer", "mode", "config"]),
    role=st.text(max_size=4),
    module=st.text(max_size=4),
    module_type=st.text(max_size=4),
    change=st.sampled_from(["changed", "added", "removed", "retyped"]),
    before=MARKS,
    after=MARKS,
    max_abs=FIGURES,
    mean_abs=FIGURES,
)


@given(st.lists(CHANGES, max_size=4), st.integers(0, 10**6))
def test_json_round_trip_with_nan_and_infinity(rows: list[Change], still: int) -> None:
    diff = StateDiff(rows, still)
    text = json.dumps(diff.to_json(), allow_nan=False)
    back = StateDiff.from_json(json.loads(text))
    # NaN is unequal to itself, so rows are compared as they are written.
    assert [repr(row) for row in back.moved] == [repr(row) for row in rows]
    assert back.still == still
    assert back.to_json() == diff.to_json()


def test_the_naive_json_is_none() -> None:
    row = change("bn.running_var", max_abs=math.nan)
    with pytest.raises(ValueError, match="JSON"):
        json.dumps(row.__dict__, allow_nan=False)
    assert row.to_dict()["max_abs"] == "nan"


def test_the_fields_that_scripts_rely_on() -> None:
    data = DIFF.to_json()
    assert list(data) == ["schema_version", "still", "moved"]
    assert data["schema_version"] == 1
    assert data["moved"][0] == {
        "path": "layer1.bn.running_mean",
        "kind": "buffer",
        "role": "norm.mean",
        "module": "layer1.bn",
        "module_type": "BatchNorm2d",
        "change": "changed",
        "before": "0" * 32,
        "after": "f" * 32,
        "max_abs": 0.5,
        "mean_abs": 0.25,
    }


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_another_schema_version_is_refused(version: object) -> None:
    with pytest.raises(SnapshotError, match=f"schema version {version!r}, this version reads 1"):
        StateDiff.from_json({"schema_version": version, "still": 0, "moved": []})
