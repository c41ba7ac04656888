"""The page about normalization statistics as text: what it says, that it is safe, and the same every time."""

from __future__ import annotations

import itertools
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from frostline.errors import MissingExtra
from frostline.report import (
    CauseLine,
    ChangeLine,
    LayerLine,
    NormPage,
    Range,
    RemedyLine,
    ScoreLine,
    render_norms,
)
from frostline.report import norm_page as room
from frostline.report.norm_charts import draw_channels, draw_depth
from frostline.report.norm_page import Scale, gain_tone

HOSTILE = "</style></title><script>alert('x')</script><img src=x onerror=alert(1)>\"'`{{ 7*7 }}&"
VOID = {"meta", "link", "input", "br", "img", "wbr"}
LOADING = {"src", "srcset", "href", "data", "action", "formaction", "poster", "background", "ping", "xlink:href"}


class Page(HTMLParser):
    """Every tag with its attributes, in order; fails where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def layers(count: int = 12, off: int = 3) -> tuple[LayerLine, ...]:
    return tuple(
        LayerLine(
            path=f"layer{i // 2}.bn{i % 2}",
            type="BatchNorm2d",
            policy="uses batch, updates ema(0.1)",
            channels=16,
            effect=0.4 / (i + 1) if i < off else 0.03,
            in_eval=None if i == 5 else 0.5 / (i + 1),
            noise=0.01 + 0.001 * i,
            p_value=0.0 if i < off else 0.4,
            off=i < off,
        )
        for i in range(count)
    )


PAGE = NormPage(
    kind="diagnosis of normalization statistics",
    title="nets:ResNet20",
    good=False,
    claim="This data is of another kind.",
    evidence="5 of 19 layers are off",
    facts=(("data", "cifar10/test: 2,500 images"), ("batch size", "128")),
    causes=(
        CauseLine("domain-shift", "This data is of another kind.", 0.83, "5 of 19 layers are off", 5),
        CauseLine("stale", "The running statistics are those of other weights.", 0.37, "off by 0.1 sd", 1),
    ),
    layers=layers(),
    scores=(
        ScoreLine("E0", "running, as they are", Range(0.814, 0.792, 0.836)),
        ScoreLine("E1", "of the training data", Range(0.84, 0.82, 0.86), Range(0.026, 0.01, 0.05)),
        ScoreLine("E2", "of this data", Range(0.8, 0.78, 0.82), Range(-0.014, -0.035, 0.007)),
        ScoreLine("E3", "of each batch of 128", Range(0.77, 0.74, 0.8), Range(-0.044, -0.06, -0.02)),
    ),
    remedies=(
        RemedyLine("leave it as it is", "", "keep", Range(0.814, 0.792, 0.836)),
        RemedyLine(
            "recalibrate on this data",
            "frostline.recalibrate(model, loader)",
            "worse",
            Range(0.8, 0.78, 0.82),
            Range(-0.014, -0.035, 0.007),
        ),
        RemedyLine("train on", "frostline.freeze(model)", "not measured"),
    ),
    worst=(
        ("layer0.bn0", tuple((0.1 * i, 1.0 + 0.1 * i, 0.12 * i, 1.1 + 0.1 * i) for i in range(16))),
        ("layer0.bn1", ((0.0, 1.0, 0.5, 2.0),)),
    ),
    notes=("pass train_loader to tell other data from old statistics",),
    generator="frostline 0.1.0",
)
CHANGED = NormPage(
    kind="recalibration of normalization statistics",
    title="nets:ResNet20",
    good=True,
    claim="The new statistics were kept.",
    evidence="kept: the metric did not get worse",
    scores=PAGE.scores[:2],
    changes=(ChangeLine("bn1", 3_072_000, 0.0191, 0.0155, 0.983, 0.00192), ChangeLine("bn2", 8, math.inf, 1, 1, 0)),
)


def hostile() -> NormPage:
    return NormPage(
        kind=HOSTILE,
        title=HOSTILE,
        good=False,
        claim=HOSTILE,
        evidence=HOSTILE,
        facts=((HOSTILE, HOSTILE),),
        causes=(CauseLine(HOSTILE, HOSTILE, 0.5, HOSTILE, 1),) * 2,
        layers=tuple(replace(layer, path=HOSTILE, type=HOSTILE, policy=HOSTILE) for layer in layers()),
        scores=(ScoreLine(HOSTILE, HOSTILE, Range(0.5, 0.4, 0.6), Range(0.1, 0.0, 0.2)),),
        remedies=(RemedyLine(HOSTILE, HOSTILE, HOSTILE, Range(0.5, 0.4, 0.6)),),
        worst=((HOSTILE, ((0.0, 1.0, 0.5, 2.0),)),),
        changes=(ChangeLine(HOSTILE, 1, 1.0, 1.0, 1.0, 1.0),),
        notes=(HOSTILE,),
        metric=HOSTILE,
        generator=HOSTILE,
    )


# The page


@pytest.mark.parametrize(
    ("page", "sections"),
    [
        (PAGE, ["verdict", "notes", "scores", "remedies", "layers", "channels", "facts"]),
        (CHANGED, ["verdict", "scores", "layers"]),
        (NormPage("diagnosis", "Linear", True, "There are no running statistics.", ""), ["verdict"]),
    ],
    ids=["diagnosis", "recalibration", "nothing"],
)
def test_the_sections_and_their_links(page: NormPage, sections: list[str]) -> None:
    text = render_norms(page)
    found = Page(text)
    assert text.startswith("<!doctype html>\n")
    assert text.endswith("</html>\n")
    assert [a["id"] for a in found.all("section")] == sections
    assert [a["href"] for a in found.all("a")] == ["#main", *(f"#{name}" for name in sections)]
    assert len(found.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        assert attributes.get("aria-labelledby") in {None, *ids}


def test_figures_are_said_as_they_are_meant_to_be_read() -> None:
    said = " ".join(Page(render_norms(PAGE)).said)
    for figure in ("81.4%", "79.2% to 83.6%", "+2.6", "−1.4", "−3.5 to +0.7", "confidence 83%", "<0.001", "not finite"):
        assert figure in said
    assert "3 of 12 layers are off by more than noise" in " ".join(said.split())
    assert "Pass train_loader to tell" in said
    other = " ".join(Page(render_norms(replace(PAGE, metric="score"))).said)
    assert "0.814" in other
    assert "%" not in other.partition("Score")[2].partition("Remedies")[0].replace("95%", "")


def test_a_difference_beyond_chance_is_colored_and_others_are_not() -> None:
    text = render_norms(replace(PAGE, remedies=()))
    assert re.findall(r'<td class="strip"><svg class="(\w*)"', text) == ["", "good", "", "bad"]
    assert [gain_tone(line.gain) for line in PAGE.scores] == ["", "good", "", "bad"]


def test_pictures_have_words_and_tables_beside_them() -> None:
    found = Page(render_norms(PAGE))
    named = [a["aria-label"] for _, a in found.tags if a.get("role") == "img"]
    assert len(named) == 1 + len(PAGE.worst)
    assert named[0] is not None
    assert "By itself: from 0.03 to 0.4, most at layer 1, layer0.bn0" in named[0]
    assert "3 layers of 12 off" in named[0]
    hidden = [a for a in found.all("svg") if a.get("aria-hidden") != "true"]
    assert hidden == []
    assert len(found.all("caption")) == 3


def test_the_layers_that_are_off_come_first_and_all_of_them_unfold() -> None:
    found = Page(render_norms(replace(PAGE, layers=layers(12, off=1)[::-1])))
    rows = [a["class"] for a in found.all("tr") if a.get("class") in {"off", "fits"}]
    assert rows[:2] == ["off", "fits"]
    assert len(rows) == 8 + 12
    assert len([a for a in Page(render_norms(replace(PAGE, layers=layers(8)))).all("tr") if a.get("class")]) == 8


@pytest.mark.parametrize("page", [PAGE, CHANGED, hostile()], ids=["diagnosis", "recalibration", "hostile"])
def test_nothing_is_loaded_and_only_our_script_runs(page: NormPage) -> None:
    text = render_norms(page)
    found = Page(text)
    for tag, attributes in found.tags:
        for name in LOADING & attributes.keys():
            assert (attributes[name] or "").startswith(("#", "data:,")), (tag, name, attributes[name])
        assert tag not in {"img", "iframe", "object", "embed", "base", "audio", "video", "source"}
        assert not any(name.startswith("on") for name in attributes)
    policy = next(a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert len(found.all("script")) == 1
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='", policy)
    assert "script-src 'unsafe" not in policy
    assert set(re.findall(r"url\(\s*(.)", text)) <= {"#"}
    assert not {"@import", "http:", "https:"} & {part for part in ("@import", "http:", "https:") if part in text}


def test_hostile_names_stay_text() -> None:
    text = render_norms(hostile())
    assert "<script>alert" not in text
    assert "onerror=alert(1)>" not in text
    assert "{{ 7*7 }}" in text
    assert HOSTILE in Page(text).said


def test_the_same_page_gives_the_same_bytes() -> None:
    assert render_norms(PAGE) == render_norms(PAGE)


def test_figures_that_are_not_finite_leave_a_gap() -> None:
    broken = replace(PAGE.layers[0], effect=math.nan, in_eval=None, p_value=math.nan)
    score = ScoreLine("E0", "running", Range(math.nan, math.nan, math.nan))
    channel = (math.nan, 1.0, 0.0, 1.0)
    page = replace(PAGE, layers=(broken,), scores=(score,), worst=(("a", (channel,)), ("b", (channel, (0, 1, 2, 3)))))
    found = Page(render_norms(page))
    assert "NaN" in found.said
    assert len([a for _, a in found.tags if a.get("role") == "img"]) == 2, (
        "a layer without a finite channel is not drawn"
    )


# What it is drawn with


def test_a_scale_holds_all_and_has_round_ticks() -> None:
    scale = Scale.over([Range(0.81, 0.79, 0.83), Range(0.7, 0.68, 0.72)], is_share=True)
    assert scale.low < 0.68
    assert scale.high > 0.83
    assert scale.ticks == (0.7, 0.75, 0.8)
    assert [scale.at(value) for value in (-9.0, scale.low, scale.high, 9.0)] == ["0.00%", "0.00%", "100.00%", "100.00%"]
    assert Scale.over([Range(1.0, 1.0, 1.0)], is_share=True).high <= 1.02
    assert len(Scale.over([], is_share=False).ticks) >= 2
    assert len(Scale.over([Range(1e6, 1e6, 1e6)], is_share=False).ticks) >= 2


def test_of_many_channels_those_that_are_off_most_are_drawn() -> None:
    channels = [(0.0, 1.0, 0.0, 1.0)] * 1000
    channels[700] = (0.0, 1.0, 9.0, 1.0)
    (chart,) = draw_channels([("bn", channels)])
    assert (chart.channels, chart.drawn) == (1000, 400)
    assert chart.rows[0] == ("700", "0", "9", "1", "1")
    assert "Means differ by 0 running standard deviations at the median, 9 at most" in chart.picture.text


def test_pictures_of_one_page_do_not_share_ids() -> None:
    same = tuple((0.1 * i, 1.0, 0.2 * i, 1.0) for i in range(5))
    one, two = draw_channels([("a", same), ("b", same)])
    depth = draw_depth(layers())
    assert depth is not None
    ids = [set(re.findall(r' id="([^"]+)"', picture)) for picture in (one.picture.svg, two.picture.svg, depth.svg)]
    assert all(ids)
    assert len(set.union(*ids)) == sum(map(len, ids))


def test_pictures_take_their_colors_from_the_page() -> None:
    depth = draw_depth(layers())
    assert depth is not None
    for name in ("--phase-1", "--phase-2", "--phase-4", "--rule", "--paper"):
        assert f"var({name})" in depth.svg
    assert "#0101" not in depth.svg
    assert "#0102" not in depth.svg
    style = (Path(room.__file__).parent / "templates" / "design.css").read_text()
    assert all(f"{name}:" in style for name in re.findall(r"var\((--[\w-]+)\)", depth.svg))


def test_the_settings_of_matplotlib_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib: Any = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    render_norms(PAGE)
    assert dict(matplotlib.rcParams) == before


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"Rendering a report needs the package 'jinja2'.*\n.*'frostline\[report\]'"):
        render_norms(PAGE)
