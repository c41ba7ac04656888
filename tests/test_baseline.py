"""Baselines: what is known does not count, what is new does, and a damaged file is said to be damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from frostline.baseline import Baseline, KnownFinding, read_baseline, write_baseline
from frostline.errors import BaselineError, CannotWrite
from frostline.findings import Finding, Severity

MOVED = Finding("F107", Severity.ERROR, "2 layers move", "trunk", file="train.py", line=24, source="model(x)")
STALE = Finding("O402", Severity.WARNING, "3 orphans", "head", model="größe")
NEW = Finding("M203", Severity.ERROR, "train() undid eval()", "trunk.bn", file="train.py", line=9, source="m.train()")


def test_what_is_written_is_read_and_splits(tmp_path: Path) -> None:
    file = tmp_path / "doctor.baseline.json"
    wrote = write_baseline(file, [STALE, MOVED])
    baseline = read_baseline(file)
    assert baseline == wrote
    assert baseline.ids == {MOVED.id, STALE.id}
    split = baseline.split([NEW, MOVED])
    assert (split.new, split.known) == ((NEW,), (MOVED,))
    assert [one.code for one in split.gone] == ["O402"]


def test_an_edit_further_up_or_another_figure_does_not_make_it_new(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    write_baseline(file, [MOVED])
    again = replace(MOVED, line=31, message="5 layers move", evidence="by 0.3")
    assert read_baseline(file).split([again]).new == ()
    assert read_baseline(file).split([replace(MOVED, source="net(x)")]).known == ()


def test_the_file_is_for_people_and_for_version_control(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    write_baseline(one, [MOVED, STALE])
    write_baseline(two, [STALE, MOVED])
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes().endswith(b"}\n")
    rows = json.loads(one.read_text())["findings"]
    assert [row["code"] for row in rows] == ["F107", "O402"]
    assert rows[0] == {
        "id": MOVED.id,
        "code": "F107",
        "where": "trunk",
        "message": "2 layers move",
        "model": "",
        "file": "train.py",
        "count": 1,
    }


def test_a_third_equal_line_is_new(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    write_baseline(file, [MOVED, STALE, replace(MOVED, line=30)])
    assert [row["count"] for row in json.loads(file.read_text())["findings"]] == [2, 1]
    copies = [replace(MOVED, line=line) for line in (24, 30, 41)]
    baseline = read_baseline(file)
    split = baseline.split([*copies, STALE])
    assert (split.new, split.known, split.gone) == ((copies[2],), (copies[0], copies[1], STALE), ())
    fewer = baseline.split(copies[:1])
    assert (fewer.new, [(one.code, one.count) for one in fewer.gone]) == ((), [("F107", 1), ("O402", 1)])


def test_a_file_from_before_they_were_counted_knows_any_number(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    write_baseline(file, [MOVED, STALE])
    data = json.loads(file.read_text())
    for row in data["findings"]:
        del row["count"]
    file.write_text(json.dumps(data))
    baseline = read_baseline(file)
    assert [one.count for one in baseline.findings] == [None, None]
    split = baseline.split([MOVED, replace(MOVED, line=30), NEW])
    assert (split.new, split.gone) == ((NEW,), (KnownFinding(STALE.id, "O402", "head", "3 orphans", "größe"),))


def test_no_findings_are_a_baseline_too(tmp_path: Path) -> None:
    write_baseline(tmp_path / "a.json", [])
    assert read_baseline(tmp_path / "a.json") == Baseline()
    assert Baseline().split([NEW]).new == (NEW,)


GOOD = {"schema_version": 1, "findings": [{"id": "0123456789ab", "code": "F107"}]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is no JSON"),
        (b'{"schema_version": 1, "findings": [', "it is no JSON"),
        (b"\xff\xfe", "cannot be read: 'utf-8' codec"),
        (b"[" * 100_000, "it is no JSON"),
        (b"[]", "it holds a list where an object is expected"),
        (json.dumps({"schema_version": 1}).encode(), "it has no list of findings"),
        (json.dumps({**GOOD, "findings": {}}).encode(), "it has no list of findings"),
        (json.dumps({**GOOD, "findings": [GOOD["findings"][0], 3]}).encode(), "finding 2 has no id of twelve"),
        (json.dumps({**GOOD, "findings": [{"id": "0123456789ab", "count": 0}]}).encode(), "count of finding 1 is 0"),
        (
            json.dumps({**GOOD, "findings": [{"id": "0123456789ab", "count": "2"}]}).encode(),
            "count of finding 1 is '2'",
        ),
        (json.dumps({**GOOD, "findings": [{"id": "xyz"}]}).encode(), "finding 1 has no id of twelve"),
        (json.dumps({**GOOD, "findings": [{"id": "0123456789ab\n"}]}).encode(), "finding 1 has no id of twelve"),
    ],
)
def test_a_damaged_file_says_what_is_wrong_and_how_to_mend_it(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "baseline.json"
    file.write_bytes(content)
    with pytest.raises(BaselineError) as caught:
        read_baseline(file)
    first, fix = str(caught.value).splitlines()[0], str(caught.value).splitlines()[-1]
    assert first.startswith(f"the baseline {file} cannot be read: ")
    assert said in first
    assert fix.startswith("  fix: restore it from version control")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("version", [0, 2, "1", None, True])
def test_another_version_is_refused(tmp_path: Path, version: object) -> None:
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps({**GOOD, "schema_version": version}))
    with pytest.raises(BaselineError, match=rf"expected schema_version: 1\n  found: +{version!r}\n"):
        read_baseline(file)


def test_what_does_not_exist_or_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match=r"there is no baseline .*\n  fix: write one first"):
        read_baseline(tmp_path / "none.json")
    with pytest.raises(BaselineError, match="cannot be read"):
        read_baseline(tmp_path)
    with pytest.raises(CannotWrite, match="cannot be written"):
        write_baseline(tmp_path / "no" / "folder.json", [MOVED])


def test_a_failure_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "baseline.json"
    write_baseline(file, [MOVED])
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(CannotWrite):
        write_baseline(file, [NEW])
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["baseline.json"]
