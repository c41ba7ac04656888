"""The page about normalization statistics as a reader meets it: opened from disk in headless Chromium."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from frostline.report import CauseLine, ChangeLine, LayerLine, NormPage, Range, RemedyLine, ScoreLine, render_norms

pytestmark = pytest.mark.browser


def opened(browser: Any, folder: Path, page: NormPage, **options: Any) -> Any:
    """The page on a screen."""
    file = folder / "report.html"
    file.write_text(render_norms(page), encoding="utf-8")
    return browser.opened(file, **options)


def page(name: str = "features.denseblock3") -> NormPage:
    return NormPage(
        kind="diagnosis of normalization statistics",
        title=name,
        good=False,
        claim="The running statistics are those of other weights.",
        evidence="all layers are off",
        facts=(("model", name),),
        causes=tuple(CauseLine(each, "A sentence.", 0.5, name, 3) for each in ("stale", "memory-too-long")),
        layers=tuple(
            LayerLine(f"{name}.{i}.norm", "BatchNorm2d", "uses running", 8, 0.3, 0.4, 0.02, 0.0, True)
            for i in range(60)
        ),
        scores=(
            ScoreLine("E0", "running, as they are", Range(0.5, 0.45, 0.55)),
            ScoreLine("E2", f"of {name}", Range(0.9, 0.88, 0.92), Range(0.4, 0.35, 0.45)),
        ),
        remedies=(
            RemedyLine("recalibrate", "frostline.recalibrate(model, loader)", "apply", Range(0.9, 0.88, 0.92)),
            RemedyLine("train on", name, "not measured"),
        ),
        worst=((name, tuple((0.1 * i, 1.0, 0.2 * i, 1.5) for i in range(12))),),
        changes=(ChangeLine(name, 4096, 0.3, 0.2, 1.1, 0.001),),
        notes=(name,),
    )


def overflow(view: Any) -> int:
    return view.evaluate("document.documentElement.scrollWidth - window.innerWidth")


OPEN_ALL = "document.querySelectorAll('details').forEach((node) => { node.open = true; })"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 360])
def test_the_page_fits_and_says_its_verdict(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    with opened(browser, tmp_path, page(), width=width, color_scheme=scheme) as view:
        assert view.get_by_text("The running statistics are those of other weights.").is_visible()
        assert overflow(view) <= 0
        view.evaluate(OPEN_ALL)
        assert overflow(view) <= 0
        sizes = view.locator(".picture text").evaluate_all(
            "(all) => all.map((item) => item.getBoundingClientRect().height)"
        )
        assert min(sizes) >= 9, "labels of pictures can be read"


def test_long_names_fit(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, page("w" * 200 + "<b>."), width=360) as view:
        view.evaluate(OPEN_ALL)
        assert overflow(view) <= 0
        assert view.locator("h1").inner_text() == "w" * 200 + "<b>."


def test_strips_show_figures_in_their_order(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, page()) as view:
        places = view.locator("#scores circle").evaluate_all("(all) => all.map((c) => c.getBoundingClientRect().x)")
        assert places[0] < places[1]
        (base, again) = view.locator("#scores .base").evaluate_all(
            "(all) => all.map((line) => line.getBoundingClientRect().x)"
        )
        assert base == again
        assert abs(base - places[0]) < 8


def test_without_scripts_everything_is_there(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_norms(page()), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    view = context.new_page()
    view.goto(file.as_uri())
    view.get_by_text("All 60 layers, in order").click()
    assert view.locator("details table tbody tr").first.is_visible()
    context.close()


def test_it_prints(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, replace(page(), good=True)) as view:
        assert view.pdf(format="A4").startswith(b"%PDF")
        view.emulate_media(media="print", color_scheme="dark")
        assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
