"""Runs that many tests look at, and a process that dies at a chosen moment."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from frostline.finetune import FinetuneConfig, RunResult, run
from frostline.finetune.metrics import EpochRow

HYMENOPTERA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "hymenoptera"
DIGITS = FinetuneConfig(epochs=2, batch_size=128)
SMALL_NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 7, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.deep = nn.Conv2d(4, 6, 3, stride=2)
        self.gate = nn.Linear(6, 4)
        self.out = nn.Linear(6, num_classes)

    def forward(self, x):
        x = self.deep(self.norm(self.stem(x)).relu())
        return self.out(x.mean((2, 3)) * self.gate(x.mean((2, 3))).mean(1, keepdim=True))

def own_size():
    return Net()
"""


class Recorder:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.begun: list[tuple[str, int, int]] = []
        self.computed: list[tuple[int, int]] = []
        self.losses: list[float] = []
        self.rows: list[EpochRow] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def features(self, done: int, total: int) -> None:
        self.computed.append((done, total))

    def begin(self, phase: str, epochs: int, done: int) -> None:
        self.begun.append((phase, epochs, done))

    def step(self, phase: str, epoch: int, done: int, steps: int, loss: float) -> None:
        self.losses.append(loss)

    def epoch(self, row: EpochRow) -> None:
        self.rows.append(row)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them; and on a busy machine two threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # accelerate collects garbage after each phase, and would look through all that pytest holds
    try:
        yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    with on_one_thread():
        yield


@pytest.fixture(scope="session")
def single_threaded() -> Callable[[], AbstractContextManager[None]]:
    """For fixtures that live longer than a test."""
    return on_one_thread


class Finished(NamedTuple):
    config: FinetuneConfig
    result: RunResult
    told: Recorder


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The embedded job, not interrupted."""
    told = Recorder()
    with on_one_thread():
        return Finished(DIGITS, run(DIGITS, tmp_path_factory.mktemp("digits") / "run", progress=told), told)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that a mean colour tells apart, split already."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for side, count in (("train", 6), ("val", 4)):
        for name, level in (("dark", 0), ("light", 128)):
            for index in range(count):
                path = root / side / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(level, level + 128, (40, 40, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def small_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the working directory, with the factories ``Net`` and ``own_size``."""
    place = tmp_path / "code"
    place.mkdir()
    (place / "small_net_of_tests.py").write_text(SMALL_NET)
    monkeypatch.chdir(place)
    yield "small_net_of_tests"
    sys.modules.pop("small_net_of_tests", None)


@pytest.fixture(scope="session")
def bees_and_ants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photographs a class to train on, four to validate."""
    if not HYMENOPTERA.is_dir():
        pytest.skip(f"REAL DATA ABSENT: {HYMENOPTERA} is not there, so fine-tuning on photographs goes untested")
    root = tmp_path_factory.mktemp("hymenoptera")
    for side, count in (("train", 12), ("val", 4)):
        for name in ("ants", "bees"):
            (root / side / name).mkdir(parents=True)
            for path in sorted((HYMENOPTERA / side / name).glob("*.jpg"))[:count]:
                (root / side / name / path.name).symlink_to(path)
    return root


class Mortal:
    """Runs the job in processes of its own that kill themselves at the moment asked for."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("killed_runs.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, out: Path, file: str, number: int, when: str, config: FinetuneConfig | None = None) -> int:
        """Run, or resume without a configuration, and die at a write; gives the exit status, -9 for a kill.

        ``when``: before the ``number``-th write of a file whose name contains ``file``, after it, or in its middle.
        """
        order: dict[str, Any] = {"out": str(out), "file": file, "number": number, "when": when}
        order["config"] = None if config is None else config.to_json()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def mortal() -> Iterator[Mortal]:
    process = Mortal()
    yield process
    process.close()
