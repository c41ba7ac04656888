from __future__ import annotations

import itertools
import re
import subprocess
import sys
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from frostline.errors import MissingExtra
from frostline.report import Curve, HeadOutcome, HeldEntry, MovedEntry, Outcome, RunPage, SpentBar, render_run
from frostline.report import run_page as room
from frostline.report.run_page import judge

HOSTILE = "</script></style></title><script>alert('x')</script><img src=x onerror=alert(1)>\"'`{{ 7*7 }}&"
VOID = {"meta", "link", "input", "br", "img", "wbr"}
LOADING = {"src", "srcset", "href", "data", "action", "formaction", "poster", "background", "ping", "xlink:href"}


class Page(HTMLParser):
    """Every tag with its attributes, in order; fails where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
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

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def hostile_page() -> RunPage:
    moved = MovedEntry(f"m.{HOSTILE}.w", HOSTILE, HOSTILE, 1.0, 0.5)
    head = HeadOutcome(HOSTILE, False, False, 1.0, 0.5, 0.4, 3)
    outcome = Outcome(HOSTILE, 2, (moved,), (head,))
    return RunPage(
        title=HOSTILE,
        summary=HOSTILE,
        verdict=False,
        facts=((HOSTILE, HOSTILE),),
        curves=(Curve(HOSTILE, HOSTILE, (1.0, 2.0), (1.0, 2.0), HOSTILE),),
        held=(
            HeldEntry(f"{HOSTILE}.w", HOSTILE, HOSTILE, HOSTILE, HOSTILE, True),
            HeldEntry(f"m.{HOSTILE}.v", HOSTILE, HOSTILE, HOSTILE, "x", False),
        ),
        trained=(MovedEntry(f"t.{HOSTILE}.w", HOSTILE, HOSTILE, 1.0, 0.5),),
        outcome=outcome,
        naive=outcome,
        warnings=(HOSTILE,),
        metric=HOSTILE,
        generator=HOSTILE,
        spent=(SpentBar(HOSTILE, HOSTILE, {HOSTILE: 1.0, "head": 2.0}, 2), SpentBar(HOSTILE, "", {"head": 1.0})),
        spent_note=HOSTILE,
    )


def test_the_page_has_every_section_and_one_first_heading(page: RunPage) -> None:
    text = render_run(page)
    found = Page(text)
    assert text.startswith("<!doctype html>\n")
    assert text.endswith("</html>\n")
    assert [a["id"] for a in found.all("section")] == [
        "verdict",
        "warnings",
        "facts",
        "curves",
        "time",
        "outcome",
        "modules",
    ]
    assert len(found.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_links_within_the_page_lead_somewhere_and_ids_are_unique(page: RunPage) -> None:
    found = Page(render_run(page))
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        for name in ("for", "aria-labelledby", "aria-describedby"):
            if name in attributes:
                assert attributes[name] in ids
    assert {f"#{name}" for name in ids} >= {a["href"] for a in found.all("a")}


def test_the_page_gives_figures_as_they_are_meant_to_be_read(page: RunPage) -> None:
    text = render_run(page)
    for figure in (
        "98.06%",
        "81.94%",
        "−16.12",
        "0 of 40 moved",
        "15 of 40 moved",
        "frostline 0.1.0",
        "Report schema 1",
    ):
        assert figure in text


def test_the_page_says_where_the_time_went(page: RunPage) -> None:
    text = render_run(page)
    found = Page(text)
    labels = [a["aria-label"] for a in found.all("svg") if "an epoch" not in str(a) and "loading" in str(a)]
    assert labels == [
        "base, first epoch: loading 15 %, head 83 %, saving 2 % of 2.06 s",
        "parity, first epoch: loading 20 %, prefix 75 %, head 1 %, saving 3 % of 1.47 s",
        "parity, epochs 10 to 14: loading 3 %, prefix 0 %, head 28 %, saving 69 % of 0.360 s",
    ]
    for said in ("0.0720 s an epoch", "waiting for the next batch", "The first epoch of a phase stands by itself."):
        assert said in text
    # It needs no script, and no color that one scheme alone has.
    drawn = [a["fill"] for a in found.all("rect") if "fill" in a]
    assert drawn
    assert all(re.fullmatch(r"var\(--[a-z0-9-]+\)", str(fill)) for fill in drawn)
    assert 'id="time"' not in render_run(replace(page, spent=()))


@pytest.mark.parametrize("which", ["sample", "hostile"])
def test_nothing_is_loaded_from_anywhere(page: RunPage, which: str) -> None:
    text = render_run(page if which == "sample" else hostile_page())
    for tag, attributes in Page(text).tags:
        for name in LOADING & attributes.keys():
            assert (attributes[name] or "").startswith(("#", "data:,")), (tag, name, attributes[name])
        assert tag not in {"img", "iframe", "object", "embed", "base", "audio", "video", "source"}
        assert not any(name.startswith("on") for name in attributes)
    assert set(re.findall(r"url\(\s*(.)", text)) <= {"#"}
    assert "@import" not in text
    assert "http:" not in text
    assert "https:" not in text


def test_hostile_names_stay_text(page: RunPage) -> None:
    text = render_run(hostile_page())
    found = Page(text)
    assert len(found.all("script")) == len(Page(render_run(page)).all("script")) == 1
    assert "<script>alert" not in text
    assert "onerror=alert(1)>" not in text
    assert "{{ 7*7 }}" in text
    assert any(attributes.get("data-path") == f"{HOSTILE}.w" for attributes in found.all("li"))


def test_the_policy_allows_this_script_and_no_other(page: RunPage) -> None:
    import base64
    import hashlib

    text = render_run(page)
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    expected = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for a in Page(text).all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{expected}'" in policy


def test_the_same_page_gives_the_same_bytes(page: RunPage) -> None:
    assert render_run(page) == render_run(page)


def test_the_same_page_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "from frostline.report import *;"
        "p = RunPage('t', 's', True, (), (Curve('loss', 'a', (1, 2), (2, 1)), Curve('loss', 'b', (3, 4), (2, 1))),"
        " (HeldEntry('a.w', 'parameter', 'weight', 'aa', 'aa', True),), (), Outcome('o', 1, (), ()), None);"
        "import hashlib; print(hashlib.sha256(render_run(p).encode()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(room.__file__).parents[2]), "HOME": str(Path.home())},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_the_verdict_is_said_in_words(page: RunPage) -> None:
    assert str(judge(page)) == "Nothing that was held moved: 40 of 40 entries equal to the bit"
    one = replace(page, held=(replace(page.held[0], equal=False, after="x"), *page.held[1:]))
    assert str(judge(one)) == "1 of 40 held entries moved: 39 of 40 entries equal to the bit"
    assert not judge(one).good
    assert 'id="verdict" class="bad"' in render_run(one)


def test_a_verdict_over_the_old_head_alone_says_so(page: RunPage) -> None:
    first, *rest = page.outcome.heads
    outcome = replace(page.outcome, heads=(replace(first, may_change=True), *rest))
    alone = tuple(replace(entry, path=f"heads.{first.name}.{n}") for n, entry in enumerate(page.held))
    said = f"Nothing that was held moved, which was only the own weights of {first.name}"
    assert judge(replace(page, outcome=outcome, held=alone)).claim == said
    with_trunk = (*alone, replace(page.held[0], path="trunk.conv.weight"))
    assert judge(replace(page, outcome=outcome, held=with_trunk)).claim == "Nothing that was held moved"


def test_a_moved_row_decides_against_the_run(page: RunPage) -> None:
    row = MovedEntry(page.held[3].path, "buffer", "norm.mean", 0.5, 0.1)
    beyond = MovedEntry("elsewhere.weight", "parameter", "weight", 0.5, 0.1)
    verdict = judge(replace(page, outcome=replace(page.outcome, moved=(row, beyond))))
    assert not verdict.good
    assert str(verdict) == "2 of 41 held entries moved: 39 of 41 entries equal to the bit"


def test_a_run_may_fail_without_a_moved_entry(page: RunPage) -> None:
    verdict = judge(replace(page, verdict=False))
    assert not verdict.good
    assert verdict.claim == "No held entry moved, but the run failed another check"
    heads = (replace(page.outcome.heads[0], logits_equal=False), page.outcome.heads[1])
    verdict = judge(replace(page, verdict=False, outcome=replace(page.outcome, heads=heads)))
    assert verdict.claim == "No held entry moved, but the logits of digit changed"


def test_a_page_of_nothing_is_a_page() -> None:
    text = render_run(RunPage("", "", True, (), (), (), (), Outcome("", 0, (), ()), None))
    assert [a["id"] for a in Page(text).all("section")] == ["verdict", "outcome", "modules"]
    assert "Nothing was held" in text


def test_without_a_naive_run_there_is_one_column(page: RunPage) -> None:
    text = render_run(replace(page, naive=None))
    assert "aive" not in text
    Page(text)


def test_modules_with_moved_entries_start_open(page: RunPage) -> None:
    def opened(text: str) -> int:
        return sum("open" in a for a in Page(text).all("details"))

    assert opened(render_run(page)) == 1
    bad = replace(page, held=tuple(replace(e, equal="stem.bn1.running_mean" not in e.path) for e in page.held))
    assert opened(render_run(bad)) == 4


def test_digests_stand_in_full(page: RunPage) -> None:
    text = render_run(page)
    assert f">{page.held[0].before}</code>" in text
    assert f'title="{page.held[0].before}"' in text


def test_a_missing_jinja_names_the_extra(page: RunPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"Rendering a report needs the package 'jinja2'.*\n.*'frostline\[report\]'"):
        render_run(page)


def test_the_room_imports_without_its_extras_and_without_torch() -> None:
    code = (
        "import sys, frostline\n"
        "before = set(sys.modules)\n"
        "import frostline.report\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'torch', 'jinja2', 'matplotlib', 'numpy'}))"
    )
    path = str(Path(room.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONPATH": path}
    )
    assert done.stdout.strip() == "[]"


def test_the_fields_that_callers_fill_in() -> None:
    assert [field.name for field in fields(RunPage)] == [
        "title",
        "summary",
        "verdict",
        "facts",
        "curves",
        "held",
        "trained",
        "outcome",
        "naive",
        "warnings",
        "metric",
        "generator",
        "spent",
        "spent_note",
    ]


def schemes() -> dict[str, dict[str, str]]:
    style = (Path(room.__file__).parent / "templates" / "design.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w+);", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)[:2]
    )
    return {"light": light, "dark": {**light, **dark}}


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# WCAG 2.2, 1.4.3 and 1.4.11: 4.5 for text, 3 for what must be seen of a control or a picture.
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_suffices(scheme: str) -> None:
    colors = schemes()[scheme]
    for text in ("ink", "soft", "good", "bad", "link"):
        for ground in ("paper", "sheet"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    assert contrast(colors["bad"], colors["alarm"]) >= 4.5
    for seen in ("line", *(f"phase-{i}" for i in range(1, 7))):
        assert contrast(colors[seen], colors["paper"]) >= 3, seen
