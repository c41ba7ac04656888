"""A realistic run (a digits classifier, trunk and digit head held while a parity head trains), and a screen."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from frostline.report import Curve, HeadOutcome, HeldEntry, MovedEntry, Outcome, RunPage, SpentBar


def digest(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def conv_and_norm(block: str, number: int) -> Iterator[tuple[str, str, str]]:
    yield f"{block}.conv{number}.weight", "parameter", "weight"
    yield f"{block}.bn{number}.weight", "parameter", "norm.weight"
    yield f"{block}.bn{number}.bias", "parameter", "norm.bias"
    yield f"{block}.bn{number}.running_mean", "buffer", "norm.mean"
    yield f"{block}.bn{number}.running_var", "buffer", "norm.var"
    yield f"{block}.bn{number}.num_batches_tracked", "buffer", "norm.count"
    yield f"{block}.bn{number}.training", "mode", "mode"


def held_rows() -> list[tuple[str, str, str]]:
    rows = [row for block in ("trunk.stem", "trunk.stage1") for n in (1, 2) for row in conv_and_norm(block, n)]
    rows += list(conv_and_norm("trunk.stage2", 1))
    return [
        *rows,
        ("trunk.stage2.bn1.eps", "config", "norm.eps"),
        ("trunk.stage2.bn1.weight.requires_grad", "requires_grad", "requires_grad"),
        ("heads.digit.weight", "parameter", "weight"),
        ("heads.digit.bias", "parameter", "bias"),
        ("heads.digit.training", "mode", "mode"),
    ]


FLAGS = {"mode": "eval", "config": "1e-05", "requires_grad": "False"}
SIZES = {"norm.mean": 0.61, "norm.var": 7.9, "norm.count": 470.0}


@pytest.fixture
def page() -> RunPage:
    held = tuple(
        HeldEntry(path, kind, role, value := FLAGS.get(kind) or digest(path), value, True)
        for path, kind, role in held_rows()
    )
    moved = tuple(
        MovedEntry(path, kind, role, SIZES[role] * (1 + 0.3 * math.sin(i)), SIZES[role] * 0.31)
        for i, (path, kind, role) in enumerate(held_rows())
        if role in SIZES
    )
    return RunPage(
        title="digits: parity on a held trunk",
        summary="The head “parity” was trained for 6 epochs; the trunk and the head “digit” were held.",
        verdict=True,
        facts=(
            ("Model", "SmallConvNet, 61,322 parameters"),
            ("Data", "digits, 1,437 train / 360 test"),
            ("Held", "trunk, heads.digit (level state)"),
            ("Trained", "heads.parity"),
            ("Optimizer", "SGD, lr 0.05, momentum 0.9, weight decay 5e-4"),
            ("Seed", "0"),
            ("PyTorch", "2.13.0, CPU, 2 threads"),
            ("Duration", "14.2 s"),
        ),
        curves=(
            Curve("loss", "base", tuple(range(1, 9)), (2.11, 1.02, 0.51, 0.33, 0.22, 0.16, 0.121, 0.094)),
            Curve("loss", "parity", tuple(range(9, 15)), (0.62, 0.41, 0.31, 0.27, 0.25, 0.243)),
            Curve(
                "accuracy of digit", "base", tuple(range(1, 9)), (0.41, 0.77, 0.88, 0.93, 0.95, 0.969, 0.975, 0.9806)
            ),
            Curve("accuracy of digit", "parity", tuple(range(9, 15)), (0.9806,) * 6),
            Curve("accuracy of parity", "parity", tuple(range(9, 15)), (0.71, 0.83, 0.88, 0.9, 0.911, 0.9167)),
        ),
        held=held,
        trained=(
            MovedEntry("heads.parity.weight", "parameter", "weight", 0.412, 0.0631),
            MovedEntry("heads.parity.bias", "parameter", "bias", 0.118, 0.0987),
        ),
        outcome=Outcome(
            "with Frostline",
            len(held),
            (),
            (
                HeadOutcome("digit", False, True, 0.0, 0.98056, 0.98056, 0),
                HeadOutcome("parity", True, False, 6.2131, 0.5028, 0.9167, 149),
            ),
        ),
        naive=Outcome(
            "naive loop (requires_grad only)",
            len(held),
            moved,
            (
                HeadOutcome("digit", False, False, 11.043, 0.98056, 0.8194, 61),
                HeadOutcome("parity", True, False, 7.871, 0.5028, 0.9222, 151),
            ),
        ),
        warnings=("torchvision runs without its compiled operators; nothing here needs them.",),
        generator="frostline 0.1.0",
        spent=(
            SpentBar("base", "first epoch", {"loading": 0.3, "head": 1.7, "saving": 0.05, "other": 0.01}, 1),
            SpentBar("parity", "first epoch", {"loading": 0.3, "prefix": 1.1, "head": 0.02, "saving": 0.05}, 1),
            SpentBar("parity", "epochs 10 to 14", {"loading": 0.01, "prefix": 0, "head": 0.1, "saving": 0.25}, 5),
            SpentBar("outside of the epochs", "", {"preparing": 0.8, "starting": 0.4, "proof": 0.1, "saving": 0.1}),
        ),
        spent_note="The first epoch of a phase stands by itself.",
    )


ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class Screen:
    """Headless Chromium."""

    def __init__(self, chromium: Any) -> None:
        self.new_context = chromium.new_context
        self._chromium = chromium

    @contextmanager
    def opened(self, file: Path, *, width: int = 1280, **options: Any) -> Iterator[Any]:
        """A page on a screen; fails if it complains or asks for anything but its own file."""
        view = self._chromium.new_page(viewport={"width": width, "height": 800}, **options)
        complaints: list[str] = []
        view.on("console", lambda message: complaints.append(message.text))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        view.on("request", lambda sent: sent.url == file.as_uri() or complaints.append(f"asked for {sent.url}"))
        view.goto(file.as_uri())
        try:
            yield view
            assert complaints == []
        finally:
            view.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Screen]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip(
            "NO BROWSER: the report is not looked at, because 'chromium' is not on PATH (apt-get install chromium)"
        )
    playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER: the package 'playwright' is missing")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield Screen(launched)
        launched.close()


# The work for a key: the filter, and the layout that it makes necessary. The best of three: others work here too.
_KEYS = """() => {
  const input = document.getElementById("search");
  const later = window.requestAnimationFrame;
  const best = {};
  for (let round = 0; round < 3; round += 1) {
    for (const query of ["b", "bn", "running", "stage1*var", "stage7.block42.", "block4 weight", "s", "", "x"]) {
      let work = () => {};
      window.requestAnimationFrame = (callback) => { work = callback; return 0; };
      document.body.offsetHeight;
      const begun = performance.now();
      input.value = query;
      input.dispatchEvent(new Event("input"));
      work();
      document.body.offsetHeight;
      best[query] = Math.min(best[query] ?? Infinity, performance.now() - begun);
    }
  }
  window.requestAnimationFrame = later;
  return Math.max(...Object.values(best));
}"""


@pytest.fixture(scope="session")
def slowest_key() -> Callable[[Any], float]:
    """Milliseconds that the page with the tree on a screen takes for the slowest of some queries."""
    return lambda view: view.evaluate(_KEYS)
