"""The page of a few-shot run: what it says, that it loads nothing, and how it looks in a browser."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from frostline.report import AccuracyLine, Curve, MetaPage, Range, VariationLine, render_meta
from frostline.report.meta_page import by_size

HOSTILE = "<script>alert(1)</script>{{ 7*7 }}\"'&"


def line(policy: str, accuracy: float | None, queries: int = 15, **more: Any) -> AccuracyLine:
    measured = None if accuracy is None else Range(accuracy, accuracy - 0.004, accuracy + 0.004)
    kind = "transductive" if policy == "batch" else "inductive"
    tasks = 0 if accuracy is None else 600
    return AccuracyLine(policy, f"statistics of {policy}", kind, queries, measured, tasks, **more)


def page(name: str = "block1.norm") -> MetaPage:
    return MetaPage(
        title="5-way 1-shot on Omniglot, maml",
        claim="Accuracy: transductive 97.1% ± 0.4, inductive 95.2% ± 0.4",
        evidence="on 600 tasks of the split 'test', with 95% intervals over tasks",
        accuracies=tuple(
            line(policy, base + 0.001 * size, size, trained=policy == "batch")
            for policy, base in (("batch", 0.956), ("support", 0.937))
            for size in (1, 5, 15)
        ),
        policies=(
            line("batch", 0.971, trained=True),
            line("support", 0.952),
            line("population", None, skipped=600, why="block1.conv grew from 4.7 to 1e9 in 3 steps"),
            line("running", 0.21, skipped=12, why="block2.conv grew"),
        ),
        policy_note="The population was measured on 100 tasks of training first.",
        curves=(
            Curve("loss", "training", (10.0, 20.0, 30.0), (1.2, 0.6, 0.3)),
            Curve("accuracy", "training", (10.0, 20.0, 30.0), (0.6, 0.8, 0.93), unit="%"),
            Curve("accuracy", "validation", (15.0, 30.0), (0.7, 0.9), unit="%"),
        ),
        variation=(VariationLine(name, 0.246, 0.0253, 0.0827, 0.0413), VariationLine("", 0.1, 0.02, 0.05, 0.03)),
        conditions=(("split", "test"), ("tasks: data: digest", "5854ea8404a735bdc0d8af368d942aac")),
        settings=(("network", "conv4, 112,005 parameters"), ("policy", "batch")),
        notes=("12 tasks of training were skipped.",),
        generator="frostline 0.1.0",
    )


class Parsed(HTMLParser):
    """Tags with their attributes; every element that is opened is closed."""

    VOID = frozenset({"meta", "link", "br", "wbr", "path", "circle", "line", "use", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_figures_stand_beside_their_intervals_and_conditions() -> None:
    text = render_meta(page())
    for said in ("97.1%", "± 0.4", "trained with", "5854ea8404a735bdc0d8af368d942aac", "15 queries"):
        assert said in text
    assert text.count('<b class="why-not">blew up</b>') == 1
    assert "block1.conv grew from 4.7 to 1e9 in 3 steps" in text
    assert "± 0.4, 12 blew up" in text
    assert "over iterations" in text
    assert "over epochs" not in text


def test_sections_are_there_for_what_there_is() -> None:
    def sections(of: MetaPage) -> list[str | None]:
        return [attributes.get("id") for tag, attributes in Parsed(render_meta(of)).tags if tag == "section"]

    everything = ["result", "notes", "policies", "curves", "variation", "conditions", "settings"]
    assert sections(page()) == everything
    assert sections(MetaPage("", "", "", ())) == ["result"]
    assert sections(replace(page(), policies=(), curves=(), notes=(), variation=())) == [
        "result",
        "conditions",
        "settings",
    ]


def test_links_within_the_page_lead_somewhere_and_ids_are_unique() -> None:
    found = Parsed(render_meta(page())).tags
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"] for tag, attributes in found if tag == "a"}
    assert links <= {f"#{name}" for name in ids}


@pytest.mark.parametrize("which", ["sample", "hostile"])
def test_nothing_is_loaded_and_names_stay_text(which: str) -> None:
    text = render_meta(page() if which == "sample" else hostile())
    for tag, attributes in Parsed(text).tags:
        assert tag not in {"img", "iframe", "object", "embed", "base", "audio", "video", "source"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, attributes)
    assert text.count("<script") == 1
    assert "<script>alert" not in text
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "http:" not in text
    assert "https:" not in text


def hostile() -> MetaPage:
    lines = (AccuracyLine(HOSTILE, HOSTILE, "inductive", 1, Range(0.5, 0.4, 0.6), 1, 1, HOSTILE, True),)
    curves = (Curve("loss", HOSTILE, (1.0, 2.0), (1.0, 2.0)),)
    pairs = ((HOSTILE, HOSTILE),)
    variation = (VariationLine(HOSTILE, 1.0, 1.0, 1.0, 1.0),)
    return MetaPage(
        HOSTILE, HOSTILE, HOSTILE, lines, lines, HOSTILE, curves, variation, pairs, pairs, (HOSTILE,), HOSTILE
    )


def test_hostile_names_cover_every_field() -> None:
    """So that a field that is added later is looked at too."""
    empty = [field.name for field in fields(MetaPage) if not getattr(hostile(), field.name)]
    assert empty == []


def test_the_same_page_gives_the_same_bytes() -> None:
    assert render_meta(page()) == render_meta(page())


def test_sizes_that_a_policy_lacks_are_no_zero() -> None:
    rows = by_size([line("batch", 0.9, 1), line("batch", 0.9, 15), line("support", 0.8, 15)])
    assert [[cell and cell.queries for cell in row.cells] for row in rows] == [[1, 15], [None, 15]]
    text = render_meta(MetaPage("", "", "", (line("batch", 0.9, 1), line("support", 0.8, 15))))
    assert text.count("<td>–</td>") == 2


# In a browser


def opened(browser: Any, folder: Path, shown: MetaPage, **options: Any) -> Any:
    """The page on a screen."""
    file = folder / "report.html"
    file.write_text(render_meta(shown), encoding="utf-8")
    return browser.opened(file, **options)


def overflow(view: Any) -> int:
    return view.evaluate("document.documentElement.scrollWidth - window.innerWidth")


OPEN_ALL = "document.querySelectorAll('details').forEach((node) => { node.open = true; })"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 360])
def test_the_page_fits_and_says_its_result(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    with opened(browser, tmp_path, page(), width=width, color_scheme=scheme) as view:
        assert view.get_by_text("Accuracy: transductive").is_visible()
        assert overflow(view) <= 0
        view.evaluate(OPEN_ALL)
        assert overflow(view) <= 0
        sizes = view.locator(".picture text").evaluate_all(
            "(all) => all.map((item) => item.getBoundingClientRect().height)"
        )
        assert min(sizes) >= 9, "labels of pictures can be read"
        # Headings of narrow columns are not broken within a word.
        heights = view.locator(".policies thead th").evaluate_all("(all) => all.map((th) => th.clientHeight)")
        assert max(heights) < 60


@pytest.mark.browser
def test_long_names_fit(browser: Any, tmp_path: Path) -> None:
    long = "w" * 200 + "<b>."
    shown = replace(page(long), policies=(line(long, 0.5), *page().policies), title=long, conditions=((long, long),))
    with opened(browser, tmp_path, shown, width=360) as view:
        view.evaluate(OPEN_ALL)
        assert overflow(view) <= 0
        assert view.locator("h1").inner_text() == long


@pytest.mark.browser
def test_strips_show_accuracies_in_their_order(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, page()) as view:
        places = view.locator("#policies circle").evaluate_all("(all) => all.map((c) => c.getBoundingClientRect().x)")
        assert len(places) == 3, "what blew up has no place on the scale"
        batch, support, running = places
        assert running < support < batch


@pytest.mark.browser
def test_it_prints(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, page()) as view:
        assert view.pdf(format="A4").startswith(b"%PDF")
        view.emulate_media(media="print", color_scheme="dark")
        assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_page_has_no_word_of_another_scale() -> None:
    assert not re.search(r"\bepochs?\b", re.sub(r"<style>.*?</style>", "", render_meta(page()), flags=re.S))
