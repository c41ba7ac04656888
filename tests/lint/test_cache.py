"""What is kept between runs: it is used while nothing it rests on has changed, and never otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frostline.lint import cache as module
from frostline.lint import run
from frostline.lint.cache import Cache, Result, digest
from frostline.lint.diagnostic import LintReport
from frostline.lint.project import Dependencies
from frostline.lint.run import lint_paths
from frostline.lint.settings import Settings

# A thawing helper behind DDP is found (D801) in the file that calls it; what the helper does decides.
MAIN = """\
from torch.nn.parallel import DistributedDataParallel as DDP
from helpers import thaw
def main(net, loader):
    net.body.requires_grad_(False)
    model = DDP(net)
    for epoch in range(9):
        if epoch > 3:
            thaw(model.module.body)
        for x in loader:
            model(x).sum().backward()
"""
THAW = "def thaw(m):\n    for p in m.parameters():\n        p.requires_grad = True\n"
SHOW = "def thaw(m):\n    print(m)\n"
# The comment has what rules look for: the file is walked through before `main` asks for it.
THROUGH = "from deep import really\n# DistributedDataParallel requires_grad\ndef thaw(m):\n    really(m)\n"
TYPO = "from torch import nn\nnet = nn.Linear(2, 2)\nnet.weight.require_grad = False\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def codes(report: LintReport) -> list[tuple[str, str]]:
    return [(each.finding.file, each.finding.code) for each in report.diagnostics]


def both() -> LintReport:
    """A run with the cache, which finds what one without it finds."""
    cached = lint_paths([Path()], Settings())
    fresh = lint_paths([Path()], Settings(), cache=False)
    assert cached.to_dict() == fresh.to_dict()
    return cached


def kept() -> dict[str, Any]:
    return json.loads(KEPT.read_bytes().partition(b"\n")[2])


def of(text: str) -> bytes:
    """A cache with this text."""
    return f"{digest(text.encode())}\n{text}".encode()


KEPT = Path(".frostline_cache/lint.json")
FOUND = [("main.py", "D801")]


def test_what_is_unchanged_is_not_linted_again(monkeypatch: pytest.MonkeyPatch):
    Path("main.py").write_text(MAIN)
    Path("helpers.py").write_text(THAW)
    first = lint_paths([Path()], Settings())
    assert (codes(first), first.cached) == (FOUND, 0)
    monkeypatch.setattr(run, "_linted", lambda names, *_: [] if not names else pytest.fail(f"{names} linted again"))
    second = lint_paths([Path()], Settings())
    assert (second.to_dict(), second.cached) == (first.to_dict(), 2)


def test_a_file_that_changed_is_linted_again():
    Path("a.py").write_text(TYPO)
    assert codes(both()) == [("a.py", "F101")]
    Path("a.py").write_text(TYPO.replace("require_grad", "requires_grad"))
    assert codes(both()) == []
    Path("a.py").write_text(TYPO)
    assert codes(both()) == [("a.py", "F101")]


def test_what_a_file_imports_from_changed():
    Path("main.py").write_text(MAIN)
    Path("helpers.py").write_text(SHOW)
    assert codes(both()) == []
    Path("helpers.py").write_text(THAW)
    assert codes(both()) == FOUND
    Path("helpers.py").unlink()
    assert codes(both()) == []


def test_what_the_import_imports_from_changed():
    # `helpers` comes before `main`, so that what it does is known already when `main` asks.
    Path("main.py").write_text(MAIN)
    Path("helpers.py").write_text(THROUGH)
    Path("deep.py").write_text(SHOW.replace("thaw", "really"))
    assert codes(both()) == []
    Path("deep.py").write_text(THAW.replace("thaw", "really"))
    assert codes(both()) == FOUND


@pytest.mark.parametrize("name", ["helpers.py", "pkg/helpers.py", "helpers/__init__.py"])
def test_a_new_file_answers_a_name_that_was_missed(name: str):
    Path("main.py").write_text(MAIN)
    assert codes(both()) == []
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(THAW)
    assert codes(both()) == FOUND


def test_a_new_file_that_is_nearer_takes_the_place_of_another():
    Path("one").mkdir()
    Path("two").mkdir()
    Path("one/main.py").write_text(MAIN)
    Path("two/helpers.py").write_text(THAW)
    assert codes(both()) == [("one/main.py", "D801")]
    Path("one/helpers.py").write_text(SHOW)
    assert codes(both()) == []


def test_a_file_called_like_a_library_answers_too():
    Path("main.py").write_text(MAIN.replace("helpers", "datasets"))
    assert codes(both()) == []
    Path("datasets.py").write_text(THAW)
    assert codes(both()) == FOUND


def test_a_new_file_that_nobody_asked_for_changes_nothing():
    Path("plain.py").write_text("import torch\nprint(torch.__version__)\n")
    lint_paths([Path()], Settings())
    Path("other.py").write_text("x = 1\n")
    assert lint_paths([Path()], Settings()).cached == 1


def test_another_working_directory_has_names_of_its_own(monkeypatch: pytest.MonkeyPatch):
    Path("sub").mkdir()
    Path("sub/a.py").write_text(TYPO)
    settings = Settings(cache_dir=Path.cwd() / "kept")
    assert codes(lint_paths([Path("sub")], settings)) == [("sub/a.py", "F101")]
    monkeypatch.chdir("sub")
    inner = lint_paths([Path()], settings)
    assert (codes(inner), inner.cached) == ([("a.py", "F101")], 0)
    monkeypatch.chdir("..")
    assert lint_paths([Path("sub")], settings).cached == 1  # both are kept


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        of("null"),
        b"\xff\xfe",
        of('{"schema": 2, "version": "?", "entries": []}'),
        of("[" * 100_000),
    ],
    ids=["empty", "cut off", "a list", "null", "not UTF-8", "of another version", "too deep"],
)
def test_a_damaged_cache_is_as_none(content: bytes):
    Path("a.py").write_text(TYPO)
    Path(".frostline_cache").mkdir()
    Path(".frostline_cache/lint.json").write_bytes(content)
    assert codes(both()) == [("a.py", "F101")]
    assert lint_paths([Path()], Settings()).cached == 1  # and is replaced


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_letter_that_changed_makes_it_as_none(share: float):
    Path("a.py").write_text(TYPO)
    lint_paths([Path()], Settings())
    content = bytearray(KEPT.read_bytes())
    at = int(share * len(content))
    content[at] = ord("1") if content[at] != ord("1") else ord("2")
    KEPT.write_bytes(content)
    report = lint_paths([Path()], Settings())
    assert (codes(report), report.cached) == ([("a.py", "F101")], 0)


@pytest.mark.parametrize("entry", [None, 7, "x", [], {}, {"digest": 1}, {"asked": None}, {"names": 7}, {"fix": []}])
def test_an_entry_that_is_none_at_all(entry: object):
    Path("a.py").write_text(TYPO)
    lint_paths([Path()], Settings())
    data = kept()
    whole = next(iter(data["entries"].values()))
    data["entries"] = dict.fromkeys(data["entries"], {**whole, **entry} if isinstance(entry, dict) and entry else entry)
    content = json.dumps(data).encode()
    KEPT.write_bytes(f"{digest(content)}\n".encode() + content)
    assert codes(lint_paths([Path()], Settings())) == [("a.py", "F101")]


def test_a_cache_of_other_rules_is_not_used(monkeypatch: pytest.MonkeyPatch):
    Path("a.py").write_text(TYPO)
    lint_paths([Path()], Settings())
    assert lint_paths([Path()], Settings()).cached == 1
    monkeypatch.setattr(module, "_version", lambda: "of another day")
    assert lint_paths([Path()], Settings()).cached == 0


def test_a_folder_that_cannot_be_made_only_costs_time():
    Path("a.py").write_text(TYPO)
    Path("taken").write_text("a file\n")
    for _ in range(2):
        report = lint_paths([Path("a.py")], Settings(cache_dir=Path("taken")))
        assert (codes(report), report.cached) == ([("a.py", "F101")], 0)
    assert Path("taken").read_text() == "a file\n"


def test_a_folder_that_cannot_be_written_only_costs_time(monkeypatch: pytest.MonkeyPatch):
    Path("a.py").write_text(TYPO)

    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "replace_file", refuse)
    assert codes(lint_paths([Path("a.py")], Settings())) == [("a.py", "F101")]


def test_without_a_cache_no_folder_is_made():
    Path("a.py").write_text(TYPO)
    lint_paths([Path()], Settings(), cache=False)
    assert [path.name for path in Path().iterdir()] == ["a.py"]


def test_the_folder_is_none_of_git():
    Path("a.py").write_text(TYPO)
    lint_paths([Path()], Settings())
    assert sorted(path.name for path in Path(".frostline_cache").iterdir()) == [".gitignore", "lint.json"]
    assert Path(".frostline_cache/.gitignore").read_text() == "*\n"


def test_files_that_are_gone_are_forgotten():
    Path("a.py").write_text(TYPO)
    Path("b.py").write_text(TYPO)
    lint_paths([Path()], Settings())
    Path("a.py").unlink()
    Path("c.py").write_text(TYPO)
    lint_paths([Path()], Settings())
    assert sorted(key.partition("\0")[2] for key in kept()["entries"]) == ["b.py", "c.py"]


def test_a_file_that_does_not_parse_is_kept_as_one():
    Path("a.py").write_text("def (\n")
    first = lint_paths([Path()], Settings())
    second = lint_paths([Path()], Settings())
    assert [(each.file, each.line) for each in first.failures] == [("a.py", 1)]
    assert (second.to_dict(), second.cached) == (first.to_dict(), 1)


def test_a_file_that_could_not_be_read_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    Path("a.py").write_text("")
    lint_paths([Path()], Settings())
    known = Cache(Path(".frostline_cache"), {"a.py": ""})
    assert known.get("a.py") is None
    assert Cache(Path(".frostline_cache"), {"a.py": digest(b"")}).get("a.py") is not None


def test_what_is_selected_is_not_part_of_what_is_kept():
    Path("a.py").write_text(TYPO)
    assert codes(lint_paths([Path()], Settings(select=("M",)))) == []
    report = lint_paths([Path()], Settings(select=("F",)))
    assert (codes(report), report.cached) == ([("a.py", "F101")], 1)


def test_who_imports_a_function_matters_to_it():
    """A result that rests on who calls a function is used only while all files are the same."""
    digests = {"a.py": digest(b"a"), "b.py": digest(b"b")}
    folder = Path("kept")
    first = Cache(folder, digests)
    first.put("a.py", Result(digests["a.py"], depends=Dependencies(callers=True)))
    first.write()
    assert Cache(folder, digests).get("a.py") is not None
    assert Cache(folder, {**digests, "b.py": digest(b"c")}).get("a.py") is None
    assert Cache(folder, {**digests, "c.py": digest(b"c")}).get("a.py") is None
