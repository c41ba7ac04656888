"""A missing extra says how to install it; any other failure passes through as it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from frostline.errors import FrostlineError, MissingExtra
from frostline.extras import require


def test_what_is_installed_is_returned() -> None:
    import json.decoder

    assert require("json", extra="train", purpose="Reading labels") is json
    assert require("json.decoder", extra="train", purpose="Reading labels") is json.decoder


@pytest.mark.parametrize("module", ["frostline_no_such_package", "frostline_no_such_package.deep.inside"])
def test_a_missing_package_says_how_to_install_it(module: str) -> None:
    with pytest.raises(MissingExtra) as caught:
        require(module, extra="report", purpose="Drawing curves")
    assert str(caught.value) == (
        "Drawing curves needs the package 'frostline_no_such_package', which is not installed.\n"
        "  fix: python -m pip install 'frostline[report]'"
    )
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, FrostlineError)
    assert caught.value.exit_code == 2
    assert caught.value.__suppress_context__


def test_a_hidden_package_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wave", None)
    with pytest.raises(MissingExtra, match="'wave'"):
        require("wave", extra="train", purpose="Sound")


def write_package(folder: Path, name: str, body: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(body)


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_an_installed_package_that_lacks_its_own_dependency_passes_through(on_path: Path) -> None:
    """`pip install frostline[train]` would not help: the package is there."""
    write_package(on_path, "frostline_half", "import frostline_not_there\n")
    with pytest.raises(ModuleNotFoundError) as caught:
        require("frostline_half", extra="train", purpose="Training")
    assert not isinstance(caught.value, MissingExtra)
    assert caught.value.name == "frostline_not_there"


def test_a_submodule_that_an_installed_package_lacks_passes_through(on_path: Path) -> None:
    """An installed, perhaps too old, package is not called 'not installed'."""
    write_package(on_path, "frostline_old", "")
    with pytest.raises(ModuleNotFoundError) as caught:
        require("frostline_old.new_room", extra="train", purpose="Training")
    assert not isinstance(caught.value, MissingExtra)
    assert caught.value.name == "frostline_old.new_room"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("raise ImportError('libcudart.so not found')", ImportError),
        ("raise RuntimeError('operator x::y does not exist')", RuntimeError),
        ("raise ModuleNotFoundError('no name given')", ModuleNotFoundError),
    ],
)
def test_a_broken_package_passes_through(on_path: Path, body: str, kind: type[Exception]) -> None:
    name = f"frostline_broken_{kind.__name__.lower()}"
    write_package(on_path, name, body)
    with pytest.raises(kind) as caught:
        require(name, extra="train", purpose="Training")
    assert type(caught.value) is kind


def test_every_extra_that_the_source_names_exists() -> None:
    """The cure in a message has to work: each ``extra=`` in the source is one of the package's."""
    import re

    root = Path(__file__).parents[1]
    declared = set(
        re.findall(r"^(\w+) = \[", (root / "pyproject.toml").read_text().partition("[project.optional")[2], re.M)
    )
    named = {
        extra
        for file in (root / "src").rglob("*.py")
        for extra in re.findall(r'extra="(\w+)"|frostline\[(\w+)\]', file.read_text())
        for extra in extra
        if extra
    }
    assert named
    assert named <= declared
