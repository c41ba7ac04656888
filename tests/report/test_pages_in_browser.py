"""What every page owes its reader, whatever it is about: looked at in headless Chromium, a page of each kind."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from frostline.report import TablePage, render_doctor, render_meta, render_norms, render_run, render_table

pytestmark = [pytest.mark.browser, pytest.mark.slow]

KINDS = ("run", "doctor", "norms", "meta", "table")
OPEN_ALL = "document.querySelectorAll('details').forEach((node) => { node.open = true; })"
# Characters that turn the direction of what stands around them, quotes of every sort, tags, a template's braces.
HOSTILE = (
    "</style></script><script>document.title='taken'</script><img src=x onerror=alert(1)>\"'`{{ 7*7 }}&\u202e\u2066"
)
LONG = "w" * 10_000


def beside(name: str) -> Any:
    """The module of a test file beside this one: the samples of each page stand with its own tests."""
    spec = importlib.util.spec_from_file_location(f"samples_of_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(name: str, rows: int = 30) -> str:
    lines = [[f"{name}.{i}.bn", "BatchNorm2d", str(i)] for i in range(rows)]
    return render_table(TablePage(name, name, [name, "type", "entries"], lines, [name]))


@pytest.fixture(scope="module")
def usual() -> dict[str, Callable[[Any], str]]:
    """Of each kind, the text of the page that its own tests look at."""
    return {
        "run": render_run,
        "doctor": lambda _: render_doctor(beside("test_doctor_page_in_browser").page()),
        "norms": lambda _: render_norms(
            replace(beside("test_norm_page").PAGE, changes=(beside("test_norm_page").CHANGED.changes))
        ),
        "meta": lambda _: render_meta(beside("test_meta_page").page()),
        "table": lambda _: table("trunk"),
    }


def named(kind: str, name: str) -> str:
    """The page with a name in every field that is printed."""
    if kind == "table":
        return table(name, 3)
    file, of, render = {
        "run": ("test_run_page", "hostile_page", render_run),
        "doctor": ("test_doctor_page", "hostile", render_doctor),
        "norms": ("test_norm_page", "hostile", render_norms),
        "meta": ("test_meta_page", "hostile", render_meta),
    }[kind]
    module = beside(file)
    module.HOSTILE = name
    return render(getattr(module, of)())


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from where npm has it or gets it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("NO AXE: accessibility is not looked at, because 'npm' is not on PATH")
    folder = tmp_path_factory.mktemp("axe")
    command = [npm, "pack", "--silent", "--prefer-offline", "axe-core@4"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    except (subprocess.SubprocessError, OSError) as reason:
        pytest.skip(f"NO AXE: accessibility is not looked at, because npm did not get axe-core: {reason}")
    (archive,) = folder.glob("axe-core-*.tgz")
    shutil.unpack_archive(archive, folder)
    return (folder / "package" / "axe.min.js").read_text(encoding="utf-8")


AXE = """async () => {
  const found = await axe.run(document, { resultTypes: ["violations"] });
  const places = (rule) => rule.nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(" | ");
  return found.violations.map((rule) => `${rule.id}: ${places(rule)}`);
}"""
# What is folded away where everything should be open.
FOLDED = """() => [...document.querySelectorAll("details:not([open]) > :not(summary)")].filter((item) =>
  !item.checkVisibility() || !item.getClientRects().length).length"""


def overflow(view: Any) -> int:
    return view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def write(folder: Path, text: str) -> Path:
    file = folder / "report.html"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing_and_the_page_fits(
    browser: Any, axe: str, usual: dict[str, Callable[[Any], str]], page: Any, tmp_path: Path, kind: str
) -> None:
    with browser.opened(write(tmp_path, usual[kind](page)), width=360, color_scheme="light") as view:
        view.evaluate(OPEN_ALL)
        view.evaluate(f"{axe};0")
        for width, scheme in ((360, "light"), (360, "dark"), (1280, "light"), (1280, "dark")):
            view.set_viewport_size({"width": width, "height": 800})
            view.emulate_media(color_scheme=scheme)
            assert overflow(view) <= 0, (width, scheme)
            assert view.evaluate(AXE) == [], (width, scheme)


def test_axe_finds_what_is_wrong(browser: Any, axe: str, tmp_path: Path) -> None:
    """The failing twin: gray on gray, and an input without a name."""
    bad = table("trunk").replace("</main>", '<p style="color:#999;background:#aaa">gray</p><input></main>')
    with browser.opened(write(tmp_path, bad)) as view:
        view.evaluate(f"{axe};0")
        found = {line.partition(":")[0] for line in view.evaluate(AXE)}
        assert {"color-contrast", "label"} <= found


@pytest.mark.parametrize("name", [HOSTILE, LONG], ids=["hostile", "long"])
@pytest.mark.parametrize("kind", KINDS)
def test_names_stay_text_and_fit(browser: Any, tmp_path: Path, kind: str, name: str) -> None:
    text = named(kind, name)
    written = name.replace("\u202e", "\\u202e").replace("\u2066", "\\u2066")
    assert not {"\u202e", "\u2066"} & set(text), "what acts unseen is written out"
    with browser.opened(write(tmp_path, text)) as view:
        assert view.locator("h1").evaluate("(h1) => h1.textContent") == written
        assert view.title() == f"{written} · Frostline"
        assert view.locator("script").count() == 1
        assert view.locator("img, iframe, body style, [onerror]").count() == 0
        view.evaluate(OPEN_ALL)
        for width in (1280, 360):
            view.set_viewport_size({"width": width, "height": 800})
            assert overflow(view) <= 0


@pytest.mark.parametrize("kind", KINDS)
def test_frame_keyboard_and_paper(
    browser: Any, usual: dict[str, Callable[[Any], str]], page: Any, tmp_path: Path, kind: str
) -> None:
    with browser.opened(write(tmp_path, usual[kind](page))) as view:
        for landmark in ("body > header", "header nav", "main", "body > footer", "h1"):
            assert view.locator(landmark).count() == 1, landmark
        view.keyboard.press("Tab")
        skip = view.locator(".skip")
        assert skip.evaluate("(link) => link === document.activeElement && link.getBoundingClientRect().top >= 0")
        view.keyboard.press("Enter")
        assert view.evaluate("document.activeElement.id") == "main"
        reached = set()
        for _ in range(200):
            view.keyboard.press("Tab")
            shown = view.evaluate(
                """() => {
                  const at = document.activeElement;
                  const style = getComputedStyle(at);
                  return [at.className || at.id, at === document.body || style.outlineStyle !== "none"];
                }"""
            )
            assert shown[1], f"focus is seen on {shown[0]}"
            reached.add(shown[0])
            if view.evaluate("document.activeElement === document.body"):
                break
        assert "sorter" in reached, "headings that sort are reached"
        view.emulate_media(media="print", color_scheme="dark")
        assert view.evaluate(FOLDED) == 0, "on paper everything is open"
        assert not view.locator("nav, .skip, .tools, .copy").evaluate_all(
            "(all) => all.some((item) => item.checkVisibility())"
        )


COLUMN = "(table, n) => [...table.tBodies[0].rows].map((row) => row.cells[n].innerText.split('\\n')[0])"


def test_tables_sort_up_down_and_back(browser: Any, usual: Any, page: Any, tmp_path: Path) -> None:
    with browser.opened(write(tmp_path, usual["norms"](page))) as view:
        foremost = view.locator("#layers table").first
        heading = foremost.locator("th", has_text="in eval")
        before = foremost.evaluate(COLUMN, 5)
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == "ascending"
        up = foremost.evaluate(COLUMN, 5)
        assert up[-1] == "not finite", "what is not finite is larger than any number"
        assert [float(text) for text in up[:-1]] == sorted(float(text) for text in before if text != "not finite")
        view.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == "descending"
        assert foremost.evaluate(COLUMN, 5) == up[::-1]
        foremost.get_by_role("button", name="Layer").click()
        assert view.locator("[aria-sort]").count() == 1
        foremost.get_by_role("button", name="Layer").click()
        foremost.get_by_role("button", name="Layer").click()
        assert foremost.evaluate(COLUMN, 5) == before, "the third time gives the order of the page back"
        remedies = view.locator("#remedies table")
        for _ in range(2):
            remedies.get_by_role("button", name="Difference, points").click()
            assert remedies.evaluate(COLUMN, 3)[-2:] == ["–", "–"], "what was not measured comes last, either way"


def test_small_figures_and_units_sort_by_what_they_mean(browser: Any, tmp_path: Path) -> None:
    times = ["41.0 s", "12 ms", "2 min 00 s", "1 h 23 min", "–", "<0.001 s"]
    sizes = ["1.23e+06", "2e−09", "0", "−16.12", "1,234", "<100.00%"]
    names = ["layer10", "layer2", "0.bn", "10.bn", "2.bn", "head"]
    text = render_table(TablePage("t", "t", ["name", "time", "size"], list(zip(names, times, sizes, strict=True))))
    with browser.opened(write(tmp_path, text), width=360) as view:
        table = view.locator("table")
        expected = {
            "name": ["0.bn", "2.bn", "10.bn", "head", "layer2", "layer10"],
            "time": ["<0.001 s", "12 ms", "41.0 s", "2 min 00 s", "1 h 23 min", "–"],
            "size": ["−16.12", "0", "2e−09", "<100.00%", "1,234", "1.23e+06"],
        }
        for column, (name, order) in enumerate(expected.items()):
            view.get_by_role("button", name=name).click()
            assert table.evaluate(COLUMN, column) == order


def test_headings_over_several_columns_and_rows_that_belong_together(
    browser: Any, usual: Any, page: Any, tmp_path: Path
) -> None:
    with browser.opened(write(tmp_path, usual["meta"](page)), width=360) as view:
        pairs = view.locator(".pairs")
        pairs.get_by_role("button", name="within").last.click()
        assert pairs.evaluate(COLUMN, 4) == ["0.03", "0.0413"]
        policies = view.locator(".policies")
        policies.get_by_role("button", name="Accuracy").click()
        assert policies.evaluate(COLUMN, 2) == ["21.0%", "95.2%", "97.1%", "blew up"], "headings sort on a phone too"
    with browser.opened(write(tmp_path, usual["doctor"](page))) as view:
        groups = view.locator(".groups")
        for _ in range(2):
            groups.get_by_role("button", name="Tensors").click()
        kinds = groups.evaluate(
            "(table) => [...table.tBodies[0].rows].map((row) => row.className || row.cells[0].innerText)"
        )
        assert kinds == ["block", "1", "aside", "0"]


@pytest.mark.parametrize("kind", ["run", "doctor"])
def test_arrow_keys_walk_the_tree(browser: Any, usual: Any, page: Any, tmp_path: Path, kind: str) -> None:
    here = "document.activeElement.querySelector('.name').innerText.split(' ')[0]"
    with browser.opened(write(tmp_path, usual[kind](page))) as view:
        view.evaluate("document.querySelectorAll('#tree details details').forEach((node) => { node.open = false; })")
        view.locator("#tree summary").first.focus()
        walked = [view.evaluate(here)]
        for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowLeft", "End", "Home"):
            view.keyboard.press(key)
            walked.append(view.evaluate(here))
        root, first, opened, inner, back, folded, above, last, home = walked
        assert first == opened == back == folded, "right opens before it goes in, left closes before it goes out"
        assert len({root, first, inner, last}) == 4
        assert above == home == root
        view.keyboard.press("ArrowLeft")
        assert view.locator("#tree > details").get_attribute("open") is None
