"""The doctor's page as a reader meets it: opened from disk in headless Chromium."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from frostline.findings import Finding, Safety, Severity
from frostline.report.contract_lines import ModuleLine, TensorLine
from frostline.report.doctor_page import (
    ComparedPart,
    CrashPart,
    DoctorPage,
    FindingCard,
    GroupLine,
    ModelPart,
    OptimizerPart,
    render_doctor,
)
from frostline.report.mode_lanes import Flip, Lane, ModeLine, ModeTimeline, PassRun
from frostline.report.rule_text import RuleText

pytestmark = pytest.mark.browser

SEEN = "(found) => found.map((item) => item.checkVisibility())"
OPEN_ALL = "document.querySelectorAll('details').forEach((node) => { node.open = true; })"


def opened(browser: Any, folder: Path, page: DoctorPage, **options: Any) -> Any:
    """The page on a screen."""
    file = folder / "report.html"
    file.write_text(render_doctor(page), encoding="utf-8")
    return browser.opened(file, **options)


def overflow(view: Any) -> int:
    return view.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def page(name: str = "trunk", layers: int = 5) -> DoctorPage:
    """A loop whose frozen trunk moved; ``name`` stands wherever a name can."""
    finding = Finding(
        "F107",
        Severity.ERROR,
        f"{layers} normalization layers of {name} moved their statistics",
        f"{name}.0.bn.running_mean",
        f"{name}.0.bn.running_var: moved by up to 0.195 in 4 steps\nwritten by aten.native_batch_norm",
        f'frostline.freeze(model, "{name}")',
        Safety.SAFE,
        tuple(f"{name}.{i}.bn.running_mean" for i in range(layers)),
        "train.py",
        41,
        0,
        f"logits = {name}(x)",
        "model",
        True,
    )
    rows = [TensorLine("head.weight", "head", "weight", "train", True)]
    for i in range(layers):
        path = f"{name}.{i}.bn"
        rows += [
            TensorLine(f"{path}.weight", path, "norm.weight", "stay", False, why="inferred: a reason"),
            TensorLine(
                f"{path}.running_mean",
                path,
                "norm.mean",
                "stay",
                True,
                "inferred: a reason",
                "written by aten.native_batch_norm at train.py:41",
                drift=((1, 0.1), (2, 0.3), (4, 0.2)),
                codes=("F107",),
            ),
        ]
    modules = (
        ModuleLine(name, "Sequential", "train"),
        *(ModuleLine(f"{name}.{i}.bn", "BatchNorm2d", "train") for i in range(layers)),
    )
    timeline = ModeTimeline(
        4,
        (Lane("model, all else", 3, "train", ()), Lane(name, 2 * layers, "eval", (Flip(0.5, "train"),), layers, True)),
        (PassRun(0.5, "train-grad"), PassRun(2.5, "eval"), PassRun(3.2, "train"), PassRun(3.6, "eval-grad")),
        (ModeLine(f"{name}.train()", "train.py:37", "train", (0.5, 2.2), "0, 2", 2 * layers, 1),),
    )
    groups = (GroupLine(0, (0.1, 0.01), 5e-4, 2, 2, 0, 0), GroupLine(1, (0.1, 0.1), None, 3, 0, 2, 1, (name,)))
    return DoctorPage(
        title=name,
        steps=4,
        cost=0.8,
        seconds=20.0,
        cards=(
            FindingCard(
                finding,
                f"{name}.0.bn.running_mean",
                "BatchNorm2d",
                "inferred frozen",
                "moved",
                ((40, "for x, y in loader:"), (41, f"    logits = {name}(x)"), (42, "    loss(logits, y).backward()")),
                (f"{name}.[0-4].bn.running_mean (x5)",),
                "safe: it makes happen what was declared",
                in_memory=True,
            ),
            FindingCard(Finding("M209", Severity.INFO, "loading changed the mode", "model", remedy=name), "model"),
        ),
        rules=(RuleText("F107", what="Compares.", example="for p in trunk.parameters():\n    ...", source=name),),
        sound=(f"{name} kept its weights", "gradients were cleared"),
        checked=("F101", "F107"),
        missed=(f"{name} is compiled",),
        models=(ModelPart("model", name, tuple(rows), modules, timeline, (name,), 1),),
        optimizers=(OptimizerPart("optimizer", "SGD", 4, groups, "train.py:28", (name,)),),
        crash=CrashPart(
            "ValueError", name, "train.py:43", f"Traceback (most recent call last):\n  File {name}\nValueError"
        ),
        compared=ComparedPart((finding,), (), (finding,), (("errors", 2, 1),)),
        facts=(("Model", name),),
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 360])
def test_the_page_fits_and_says_its_verdict(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    with opened(browser, tmp_path, page(), width=width, color_scheme=scheme) as view:
        assert view.locator(".verdict strong").inner_text() == "1 error"
        assert view.get_by_role("heading", name="5 normalization layers of trunk moved their statistics").is_visible()
        assert overflow(view) <= 0
        view.evaluate(OPEN_ALL)
        assert overflow(view) <= 0


@pytest.mark.parametrize("width", [1280, 360])
def test_long_and_hostile_names_fit_and_do_nothing(browser: Any, tmp_path: Path, width: int) -> None:
    name = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>" + "w" * 300
    with opened(browser, tmp_path, page(name), width=width) as view:
        view.evaluate(OPEN_ALL)
        assert view.title() == f"{name} · Frostline"
        assert view.locator("h1").inner_text() == name
        assert overflow(view) <= 0
        view.get_by_label("Filter by path or type").fill("running_mean")
        view.locator("#found", has_text="modules of").wait_for()


def test_search_filters_the_tree_and_gives_it_back(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, page()) as view:
        search = view.get_by_label("Filter by path or type")
        before = view.locator("#tree details[open]").count()
        search.fill("TRUNK.3.bn running_*")
        view.get_by_text("1 module of 13").wait_for()
        assert view.locator("#tree summary:visible b").all_inner_texts() == ["model", "trunk", "0 … 4", "bn"], (
            "a row that stands for the module that was asked for is shown"
        )
        search.fill("batchnorm")
        view.get_by_text("5 modules of 13").wait_for()
        search.fill("trunk.5")
        view.get_by_text("No module matches “trunk.5”.").wait_for()
        search.fill("")
        view.locator("#found:empty").wait_for(state="attached")
        assert view.locator("#tree details[open]").count() == before
        assert view.locator("#tree [hidden]").count() == 0


def test_only_what_contradicts_can_be_shown(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, page()) as view:
        view.get_by_label("Only what contradicts").check()
        view.get_by_text("12 modules of 13").wait_for()
        assert view.locator("#tree summary:visible b").all_inner_texts() == ["model", "trunk", "0 … 4", "bn"]
        view.get_by_label("Filter by path or type").fill("head")
        view.get_by_text("No module matches “head”.").wait_for()


def test_two_thousand_modules_are_searched_at_once(
    browser: Any, slowest_key: Callable[[Any], float], tmp_path: Path
) -> None:
    rows = [
        TensorLine(
            path := f"stage{i // 100}.block{i % 100}.bn.{name}",
            path.rpartition(".")[0],
            "norm.mean",
            "stay" if (i * i + j) % 3 else "train",
            moved=(i * i + j) % 5 == 0,
        )
        for i in range(2_000)
        for j, name in enumerate(("weight", "running_mean", "running_var"))
    ]
    big = replace(page(), models=(ModelPart("model", "Net", tuple(rows)),))
    with opened(browser, tmp_path, big, width=360) as view:
        search = view.get_by_label("Filter by path or type")
        search.fill("stage7.block42.")
        view.get_by_text("1 module of ").wait_for()
        assert view.locator("#tree .leaves").evaluate_all(SEEN).count(True) == 1
        assert slowest_key(view) < 250, "milliseconds for a keystroke, on a machine that has other work"
        assert overflow(view) <= 0


def test_code_is_copied(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, page()) as view:
        view.context.grant_permissions(["clipboard-read", "clipboard-write"])
        view.locator("#findings .copy").first.click()
        view.get_by_text("Copied").wait_for()
        assert view.evaluate("navigator.clipboard.readText()") == 'frostline.freeze(model, "trunk")'


def test_a_link_to_a_rule_opens_it(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, page()) as view:
        rule = view.locator("#rule-F107")
        assert rule.get_attribute("open") is None
        view.locator("#finding-1 .label a").click()
        view.locator("#rule-F107[open]").wait_for()
        assert rule.locator("dt").first.is_visible()
        view.locator("#tree a.code").first.click()
        assert view.evaluate("location.hash") == "#finding-1"


def test_everything_is_reached_by_keyboard(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, page()) as view:
        trunk = view.locator("#tree details details").filter(has_text="trunk").first
        view.get_by_label("Only what contradicts").focus()
        view.keyboard.press("Tab")
        view.keyboard.press("Tab")
        open_before = trunk.get_attribute("open")
        assert view.evaluate("document.activeElement.querySelector('b')?.textContent") in {"head", "trunk"}
        assert view.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        while view.evaluate("document.activeElement.querySelector('b')?.textContent") != "trunk":
            view.keyboard.press("Tab")
        view.keyboard.press("Enter")
        assert trunk.get_attribute("open") != open_before


def test_without_scripts_everything_is_there_but_the_search(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_doctor(page()), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    view = context.new_page()
    view.goto(file.as_uri())
    assert view.locator(".verdict").is_visible()
    assert not view.locator("#search").is_visible()
    assert not view.locator(".copy").first.is_visible()
    view.locator("#rules summary").first.click()
    assert view.get_by_text("Compares.").is_visible()
    context.close()


def test_it_prints(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, page()) as view:
        assert view.pdf(format="A4").startswith(b"%PDF")
        view.emulate_media(media="print", color_scheme="dark")
        assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not view.locator("#search").is_visible()
        assert not view.locator(".copy").first.is_visible()
        assert view.locator(".verdict").is_visible()
