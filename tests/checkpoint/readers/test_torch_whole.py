"""Files that torch reads as a whole, with the code that they name."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from frostline.checkpoint.readers.open_file import read_contents
from frostline.errors import CheckpointError, CorruptCheckpoint

MODULE = "nets_that_only_this_test_has"


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A pickle of a class in a module beside it, which nothing has imported."""
    (tmp_path / f"{MODULE}.py").write_text(
        "import torch\n\nclass Net(torch.nn.Linear):\n    def __setstate__(self, state):\n"
        "        import json\n        json.loads(open('told.json').read())\n        super().__setstate__(state)\n"
    )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        torch.save(importlib.import_module(MODULE).Net(2, 3), tmp_path / "whole.pth")
    del sys.modules[MODULE]
    (tmp_path / "told.json").write_text("1")
    yield tmp_path / "whole.pth"
    sys.modules.pop(MODULE, None)


def test_the_working_directory_has_the_code(saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(saved.parent)
    before = list(sys.path)
    root: Any = read_contents(saved, allow_pickle=True).root
    assert set(root) == {"weight", "bias"}
    assert sys.path == before


def test_code_that_is_not_there_or_fails_is_no_damage(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="the pickle's code failed") as caught:
        read_contents(saved, allow_pickle=True)
    assert not isinstance(caught.value, CorruptCheckpoint)
    assert f"No module named '{MODULE}'" in str(caught.value)
    assert f"fix: make {MODULE} importable" in str(caught.value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "told.json").write_text("no JSON")
    with pytest.raises(CheckpointError, match=r"the pickle's code failed\n  found: JSONDecodeError") as caught:
        read_contents(saved, allow_pickle=True)
    assert not isinstance(caught.value, CorruptCheckpoint)


def test_torchvision_is_made_importable_first(saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(saved.parent)
    asked: list[bool] = []

    def asks() -> None:
        warnings.warn("as import_torchvision() does", stacklevel=1)
        asked.append(MODULE in sys.modules)

    monkeypatch.setattr("frostline.checkpoint.readers.torch_whole.import_torchvision", asks)
    with warnings.catch_warnings(record=True) as told:
        read_contents(saved, allow_pickle=True)
    assert (asked, told) == ([False], [])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_file_that_is_cut_short_is_damaged_whatever_is_allowed(legacy: bool, share: float, tmp_path: Path):
    path = tmp_path / "a.pth"
    torch.save({"net": torch.nn.Linear(50, 50)}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CorruptCheckpoint):
        read_contents(path, allow_pickle=True)
