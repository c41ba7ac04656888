"""The documentation: every Python block of its pages runs, and prints what stands below it."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import linecache
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

from frostline.findings import CATALOGUE

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> ModuleType:
    """A file of ``docs/site``, which is no package: MkDocs runs it by its path."""
    spec = importlib.util.spec_from_file_location(f"docs_site_{name}", ROOT / "docs" / "site" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


snippets = load("snippets")
PAGES = snippets.pages()
# An example is put into its page when the site is built; `tests/test_examples.py` runs it and looks at the page.
INCLUDED = "# include "


def is_run(block) -> bool:
    return block.language == "python" and INCLUDED not in block.text


def run_page(path: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    every = snippets.blocks(path)
    for block, below in zip(every, [*every[1:], None], strict=True):
        if not is_run(block):
            continue
        # The file has as many lines in front as the page, so that tracebacks and findings name the page's own.
        name, source = f"docs/{block.page}", "\n" * (block.line - 1) + block.text
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, name, "exec"), namespace)
        if below is not None and below.language == "text":
            wrong = snippets.unlike(below.text, printed.getvalue())
            assert not wrong, f"{name}:{below.line}: {wrong!r} is not what is printed:\n{printed.getvalue()}"


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in PAGES if any(map(is_run, snippets.blocks(p)))])
def test_the_blocks_of_a_page_run_one_after_the_other(path: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run_page(path)
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)


def test_only_blocks_that_need_several_processes_are_shown_without_being_run() -> None:
    """A process group in the process of the tests waits for others; `tests/freezing` runs these calls on two."""
    shown = [block for path in PAGES for block in snippets.blocks(path) if is_python_that_is_not_run(block)]
    every = [block for path in PAGES for block in snippets.blocks(path) if is_run(block)]
    assert len(every) >= 40
    pages = {block.page for block in shown}
    assert pages <= {"frameworks.md", "howto/several-processes.md"}, pages
    assert len(shown) <= 2


def is_python_that_is_not_run(block) -> bool:
    if block.language not in ("", "py"):
        return False
    try:
        return bool(ast.parse(block.text).body)
    except SyntaxError:
        return False


def test_every_page_that_is_written_stands_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in PAGES:
        assert f": {path.relative_to(snippets.DOCS).as_posix()}\n" in config, path


def test_every_rule_has_a_page_with_the_texts_that_the_command_prints() -> None:
    pages = load("rules").pages()
    assert set(pages) == {"rules/index.md", *(f"rules/{code}.md" for code in CATALOGUE)}
    assert "`requires_grad=False` is about gradients" in pages["rules/F107.md"]
    assert "## In source: `frostline lint`" in pages["rules/F107.md"]
    assert r"requires\_grad was set on a module" in pages["rules/F102.md"]


def test_every_picture_that_a_page_shows_is_there_and_small() -> None:
    shown = {
        (path.parent / found).resolve()
        for path in PAGES
        for found in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    }
    assert len(shown) >= 3
    for picture in shown:
        assert picture.stat().st_size < 60_000, picture.name


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path, monkeypatch) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    # The theme says at each start when its support ends; that is no warning about the pages.
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the tools that build it
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    built = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "rules/F107.html", "reference/freezing.html", "scenarios/s9.html"} <= built
    assert {"reference/errors.html", "reference/integrations.lightning.html"} <= built
    assert "FrozenStateMoved" in (tmp_path / "site" / "reference" / "errors.html").read_text(encoding="utf-8")
    first = (tmp_path / "site" / "scenarios" / "s1.html").read_text(encoding="utf-8")
    assert "TwoHeads" in first
    assert "googleapis" not in first
    for path in (tmp_path / "site").rglob("*.html"):
        assert str(ROOT) not in path.read_text(encoding="utf-8"), f"{path.name} names a folder of this machine"
