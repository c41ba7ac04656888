"""The page as a reader meets it: opened from disk in headless Chromium."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from frostline.report import HeldEntry, RunPage, render_run

pytestmark = pytest.mark.browser


def write(folder: Path, page: RunPage) -> Path:
    file = folder / "report.html"
    file.write_text(render_run(page), encoding="utf-8")
    return file


def overflow(view: Any) -> int:
    return view.evaluate("document.documentElement.scrollWidth - window.innerWidth")


SEEN = "(found) => found.map((item) => item.checkVisibility())"
OPEN_ALL = "document.querySelectorAll('details').forEach((node) => { node.open = true; })"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_fits_and_says_its_verdict(
    browser: Any, tmp_path: Path, page: RunPage, width: int, scheme: str
) -> None:
    with browser.opened(write(tmp_path, page), width=width, color_scheme=scheme) as view:
        assert view.get_by_text("Nothing that was held moved").is_visible()
        assert view.locator(".evidence").inner_text() == "40 of 40 entries equal to the bit"
        assert overflow(view) <= 0
        view.evaluate(OPEN_ALL)
        assert overflow(view) <= 0
        view.get_by_label("Digests in full").check()
        assert overflow(view) <= 0


@pytest.mark.parametrize("width", [1280, 360])
def test_long_and_hostile_names_fit_and_do_nothing(browser: Any, tmp_path: Path, page: RunPage, width: int) -> None:
    name = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>" + "w" * 300
    rows = tuple(replace(entry, path=f"{name}.{entry.path}", role=name, before=name) for entry in page.held[:3])
    heads = tuple(replace(head, name=name + head.name) for head in page.outcome.heads)
    curves = tuple(replace(curve, name=name, phase=name + curve.phase) for curve in page.curves[:2])
    hostile = replace(
        page,
        title=name,
        summary=name,
        facts=((name, name),),
        held=rows,
        curves=curves,
        outcome=replace(page.outcome, title=name, heads=heads, moved=()),
        warnings=(name,),
    )
    with browser.opened(write(tmp_path, hostile), width=width) as view:
        view.evaluate(OPEN_ALL)
        assert view.title() == f"{name} · Frostline"
        assert view.locator("h1").inner_text() == name
        assert overflow(view) <= 0


def test_search_filters_the_tree_and_gives_it_back(browser: Any, tmp_path: Path, page: RunPage) -> None:
    with browser.opened(write(tmp_path, page)) as view:
        search = view.get_by_label("Filter by path")
        before = view.locator("#tree details[open]").count()
        search.fill("STEM.bn1 running_*")
        view.get_by_text("2 entries of 42").wait_for()
        shown = view.locator("#tree .leaf:visible").evaluate_all("(found) => found.map((item) => item.dataset.path)")
        assert shown == ["trunk.stem.bn1.running_mean", "trunk.stem.bn1.running_var"]
        assert view.locator("#tree summary:visible .name").all_inner_texts() == ["whole model", "trunk", "stem", "bn1"]
        search.fill("no.such(")
        view.get_by_text("No path contains “no.such(”.").wait_for()
        search.fill("")
        view.locator("#found:empty").wait_for(state="attached")
        assert view.locator("#tree details[open]").count() == before
        assert view.locator("#tree [hidden]").count() == 0


def test_modules_open_by_keyboard(browser: Any, tmp_path: Path, page: RunPage) -> None:
    with browser.opened(write(tmp_path, page)) as view:
        trunk = view.locator("#tree details details").first
        view.get_by_label("Digests in full").focus()
        view.keyboard.press("Tab")
        view.keyboard.press("Tab")
        assert view.evaluate("document.activeElement.querySelector('.name').textContent") == "trunk"
        assert trunk.get_attribute("open") is None
        view.keyboard.press("Enter")
        assert trunk.get_attribute("open") is not None
        assert view.locator("#tree summary .name", has_text="stage1").is_visible()
        assert view.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_without_scripts_everything_is_there_but_the_search(browser: Any, tmp_path: Path, page: RunPage) -> None:
    context = browser.new_context(java_script_enabled=False)
    view = context.new_page()
    view.goto(write(tmp_path, page).as_uri())
    assert view.locator(".verdict").is_visible()
    assert not view.locator("#search").is_visible()
    view.locator("#tree summary", has_text="trunk").click()
    assert view.locator("#tree summary .name", has_text="stage2").is_visible()
    context.close()


def test_still_readers_see_no_motion(browser: Any, tmp_path: Path, page: RunPage) -> None:
    with browser.opened(write(tmp_path, page), reduced_motion="reduce") as view:
        assert view.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
        moving = view.evaluate(
            "[...document.querySelectorAll('*')]"
            ".some((item) => getComputedStyle(item, '::before').transitionDuration !== '0s')"
        )
        assert moving is False


def test_a_shortened_digest_is_copied_whole(browser: Any, tmp_path: Path, page: RunPage) -> None:
    with browser.opened(write(tmp_path, page)) as view:
        view.evaluate(OPEN_ALL)
        digest = view.locator("#tree .digest").first
        assert digest.bounding_box()["width"] < 90
        digest.click()
        assert view.evaluate("getSelection().toString()") == page.held[0].before


def test_two_thousand_modules_can_be_searched(
    browser: Any, slowest_key: Callable[[Any], float], tmp_path: Path, page: RunPage
) -> None:
    held = tuple(
        HeldEntry(
            f"stage{i // 100}.block{i % 100}.bn.{name}", "buffer", "norm.mean", digest := f"{i:032x}", digest, True
        )
        for i in range(2_000)
        for name in ("running_mean", "running_var", "num_batches_tracked")
    )
    big = replace(page, held=held, outcome=replace(page.outcome, held=len(held)))
    with browser.opened(write(tmp_path, big), width=360) as view:
        search = view.get_by_label("Filter by path")
        search.fill("stage7.block42.")
        view.get_by_text("3 entries of 6,002").wait_for()
        # playwright's own `:visible` takes half a minute over so many elements; the page's filter takes milliseconds.
        assert sum(view.locator("#tree .leaf").evaluate_all(SEEN)) == 3
        search.fill("running")
        view.get_by_text("4,000 entries of 6,002; open a module to see its own").wait_for()
        assert overflow(view) <= 0
        search.fill("")
        view.locator("#found:empty").wait_for(state="attached")
        assert view.locator("#tree details[open]").count() == 1
        assert slowest_key(view) < 250, "milliseconds for a keystroke, on a machine that has other work"


def test_it_prints(browser: Any, tmp_path: Path, page: RunPage) -> None:
    with browser.opened(write(tmp_path, page)) as view:
        assert view.pdf(format="A4").startswith(b"%PDF")
        view.emulate_media(media="print", color_scheme="dark")
        assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not view.locator("#search").is_visible()
        assert view.locator(".verdict").is_visible()
