"""A result as JSON: there whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frostline.errors import CannotWrite
from frostline.integrations.json_file import write_json


def test_folders_are_made_and_what_was_there_is_replaced(tmp_path: Path):
    path = write_json(tmp_path / "a" / "b.json", {"x": 1})
    assert write_json(str(path), {"x": [2]}) == path
    assert json.loads(path.read_text()) == {"x": [2]}
    assert [each.name for each in path.parent.iterdir()] == ["b.json"]


def test_a_place_that_cannot_be_is_told_and_what_was_there_stays(tmp_path: Path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(CannotWrite, match="cannot be written"):
        write_json(tmp_path / "file" / "b.json", {})
    assert (tmp_path / "file").read_text() == "here"


def test_what_is_no_json_leaves_what_was_there(tmp_path: Path):
    path = write_json(tmp_path / "b.json", 1)
    with pytest.raises(TypeError):
        write_json(path, object())
    assert json.loads(path.read_text()) == 1
