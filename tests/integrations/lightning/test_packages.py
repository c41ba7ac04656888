"""Which Lightning is taken, and which versions are."""

from __future__ import annotations

import sys
from importlib import metadata

import lightning.pytorch
import pytest
from lightning.pytorch.callbacks import Callback

from frostline.errors import UnsupportedVersion, UntestedVersion
from frostline.integrations.lightning import Doctor, Freeze
from frostline.integrations.lightning.packages import callback_class, framework, kinds


def test_the_one_that_is_imported_is_taken(monkeypatch: pytest.MonkeyPatch):
    assert framework() is lightning.pytorch
    assert issubclass(Freeze, Callback)
    assert issubclass(Doctor, Callback)
    other = pytest.importorskip("pytorch_lightning")
    both = callback_class()
    assert issubclass(both, Callback)
    assert issubclass(both, other.Callback)
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    assert framework() is other


@pytest.mark.parametrize(("version", "error"), [("2.3.9", UnsupportedVersion), ("9.0", UntestedVersion)])
def test_another_version_is_named_with_the_range(monkeypatch: pytest.MonkeyPatch, version: str, error: type[Exception]):
    monkeypatch.setattr(metadata, "version", lambda _: version)
    with pytest.raises(error, match=r"lightning>=2\.4, tested up to 2\.6"):
        framework()


def test_classes_that_a_version_lacks_are_left_out():
    assert {kind.__name__ for kind in kinds("strategies", "DDPStrategy", "NoSuchStrategy")} == {"DDPStrategy"}
