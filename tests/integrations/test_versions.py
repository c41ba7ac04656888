"""A framework that is too old, too new or missing is told of when its integration is imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from importlib import metadata

import pytest

from frostline.errors import MissingExtra, UnsupportedVersion, UntestedVersion
from frostline.integrations.versions import supported

NAMES = ["lightning", "transformers", "accelerate", "timm"]


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], types.ModuleType]:
    """A package ``loom`` that is there, in a version of choice."""

    def make(version: str) -> types.ModuleType:
        real = metadata.version
        module = types.ModuleType("loom")
        monkeypatch.setitem(sys.modules, "loom", module)
        monkeypatch.setattr(metadata, "version", lambda name: version if name == "loom" else real(name))
        return module

    return make


def ask() -> types.ModuleType:
    return supported("loom", oldest="2.4", tested="2.6", extra="loom", purpose="The callback")


@pytest.mark.parametrize("version", ["2.4", "2.4.0", "2.5.1", "2.6", "2.6.9", "2.6.0.dev1", "2.4rc1"])
def test_what_is_in_the_range_is_imported_without_a_word(framework, version):
    module = framework(version)
    assert ask() is module


@pytest.mark.parametrize("version", ["2.3.9", "1.13.1", "0.9", "2"])
def test_older_ones_are_refused_with_the_range(framework, version):
    framework(version)
    with pytest.raises(UnsupportedVersion) as caught:
        ask()
    assert str(caught.value).splitlines() == [
        "The callback needs a newer loom.",
        f"  found: loom {version}",
        "  supported: loom>=2.4, tested up to 2.6",
        "  fix: python -m pip install 'loom>=2.4'",
    ]


@pytest.mark.parametrize("version", ["2.7", "3", "2.10.1"])
def test_newer_ones_are_imported_with_a_warning(framework, version):
    module = framework(version)
    with pytest.warns(UntestedVersion, match=rf"loom {version} is newer than what was tested.*\n.*tested up to 2.6"):
        assert ask() is module


def test_a_missing_one_is_told_with_its_extra():
    with pytest.raises(MissingExtra, match=r"'frostline\[loom\]'"):
        ask()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::frostline.errors.TorchvisionWithoutOperators")
@pytest.mark.parametrize("name", NAMES)
def test_each_integration_says_its_range_when_it_is_imported(monkeypatch, name):
    """An old release of its framework, as its metadata would say."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"NOT INSTALLED: {name}")
    module = importlib.import_module(f"frostline.integrations.{name}")
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda package: "0.0.1" if package == name else real(package))
    loaded = {key: value for key, value in sys.modules.items() if key.startswith(module.__name__)}
    for key in loaded:
        monkeypatch.delitem(sys.modules, key)
    with pytest.raises(UnsupportedVersion, match=rf"supported: {name}>="):
        importlib.import_module(module.__name__)
