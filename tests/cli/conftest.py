"""Runs commands as the program does, within this process, because torch need then be imported once."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

FACTORY = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 7, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.gate = nn.Linear(4, 5)
        self.out = nn.Linear(4, num_classes)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu().mean((2, 3))
        return self.out(x * self.gate(x).mean(1, keepdim=True))

def half_frozen():
    model = Net()
    model.norm.requires_grad_(False)
    return model
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    from frostline.cli.app import run

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["frostline", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        with warnings.catch_warnings():  # the program sets filters of its own
            try:
                run()
            except SystemExit as leaving:
                code = leaving.code or 0
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for side, count in (("train", 4), ("val", 2)):
        for name in ("dark", "light"):
            for index in range(count):
                path = root / side / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the working directory, with the factories ``Net`` and ``half_frozen``."""
    place = tmp_path / "code"
    place.mkdir()
    (place / "factories_of_cli_tests.py").write_text(FACTORY)
    monkeypatch.chdir(place)
    yield "factories_of_cli_tests"
    sys.modules.pop("factories_of_cli_tests", None)


@pytest.fixture(scope="session")
def lint_samples() -> ModuleType:
    """The module of that name beside this one: tests are no package, so it cannot be imported."""
    spec = importlib.util.spec_from_file_location("lint_samples", Path(__file__).with_name("lint_samples.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Hidden(importlib.abc.MetaPathFinder):
    """Finds nothing below one name, as if its package were not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def hide_one(package: str) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Hidden(package), *sys.meta_path])

    return hide_one
