"""Which files are linted: named ones always, folders with excludes, links once, and what cannot be read is told."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from frostline.errors import LintSettingsError
from frostline.lint.diagnostic import Failure
from frostline.lint.discovery import FoundFile, find_files
from frostline.lint.settings import DEFAULT_EXCLUDE, Settings


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(*paths: str, **values: Any) -> list[str]:
    files, failures = find_files([Path(path) for path in paths or (".",)], Settings(**values))
    assert failures == []
    return [file.name for file in files]


def test_python_files_and_notebooks_in_the_order_of_their_names(here: Path) -> None:
    tree("b.py", "a/x.ipynb", "a/x.pyi", "a/x.pyc", "a/x.txt", "a/py", "c/d/e.py", "a.py")
    assert found() == ["a.py", "a/x.ipynb", "b.py", "c/d/e.py"]
    assert found("c", "b.py", "a") == found("a", "c", "b.py") == ["a/x.ipynb", "b.py", "c/d/e.py"]


def test_no_paths_no_files(here: Path) -> None:
    assert find_files([], Settings()) == ([], [])


def test_names_are_relative_below_the_working_directory_and_absolute_elsewhere(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree("in/a.py", "in2/b.py")
    monkeypatch.chdir(here / "in")
    files, _ = find_files([Path("."), Path("../in2")], Settings())
    assert files == [
        FoundFile(here / "in2/b.py", str(here / "in2/b.py")),
        FoundFile(here / "in/a.py", "a.py"),
    ]
    assert [file.name for file in find_files([here / "in"], Settings())[0]] == ["a.py"]
    assert [file.name for file in find_files([Path("../in/./a.py")], Settings())[0]] == ["a.py"]


def test_a_file_that_is_named_is_taken_whatever_it_is(here: Path) -> None:
    tree("run", "stub.pyi", "build/x.py", "out.py")
    Path(".gitignore").write_text("out.py\n")
    names = ["build/x.py", "out.py", "run", "stub.pyi"]
    assert found(*names, exclude=("*",)) == names
    assert found() == []


@pytest.mark.parametrize("name", sorted(DEFAULT_EXCLUDE))
def test_folders_that_hold_nobodys_own_code_are_left_out(here: Path, name: str) -> None:
    tree(f"{name}/x.py", f"a/{name}/b/x.py", f"a/{name}x/x.py")
    assert found() == [f"a/{name}x/x.py"]
    assert found(exclude=()) == sorted([f"{name}/x.py", f"a/{name}/b/x.py", f"a/{name}x/x.py"])
    # Twin: the same folder, named.
    assert found(name) == [f"{name}/x.py"]


def test_a_folder_that_is_named_is_looked_into_although_it_lies_in_one_that_is_left_out(here: Path) -> None:
    tree("venv/lib/site-packages/timm/m.py", "venv/lib/site-packages/timm/build/x.py")
    assert found() == []
    assert found("venv/lib/site-packages/timm") == ["venv/lib/site-packages/timm/m.py"]
    assert found("venv/lib/site-packages") == ["venv/lib/site-packages/timm/m.py"]
    assert found("venv/lib/site-packages/timm", exclude=("venv/*", "build")) == ["venv/lib/site-packages/timm/m.py"]
    Path("venv/.gitignore").write_text("*\n")
    Path(".git").mkdir()
    assert found("venv/lib/site-packages/timm") == ["venv/lib/site-packages/timm/m.py"]


def test_a_folder_and_one_in_it_that_is_left_out(here: Path) -> None:
    tree("a/x.py", "a/build/y.py")
    assert found("a", "a/build") == found("a/build", "a") == ["a/build/y.py", "a/x.py"]
    assert found("a", "a", "./a/../a") == ["a/x.py"]


def test_excludes_fit_names_and_paths_from_the_root(here: Path) -> None:
    tree("a/gen/x.py", "gen/x.py", "a/x_pb2.py", "old/deep/x.py", "a/old/x.py", "keep.py")
    every = ["a/gen/x.py", "a/old/x.py", "a/x_pb2.py", "gen/x.py", "keep.py", "old/deep/x.py"]
    assert found() == every
    assert found(extend_exclude=("gen", "*_pb2.py")) == ["a/old/x.py", "keep.py", "old/deep/x.py"]
    assert found(extend_exclude=("old/*", "a/gen/x.py")) == ["a/old/x.py", "a/x_pb2.py", "gen/x.py", "keep.py"]
    assert found(extend_exclude=("old/*",), root=here / "a") == [each for each in every if each != "a/old/x.py"]
    # The defaults stand beside extend-exclude, and give way to exclude.
    tree("build/x.py")
    assert found(extend_exclude=("a", "old", "gen")) == ["keep.py"]
    assert found(exclude=("a", "old", "gen")) == ["build/x.py", "keep.py"]


def test_what_git_ignores_is_left_out_unless_told_otherwise(here: Path) -> None:
    tree("a.py", "out/b.py", "in/c.py", "in/d.py")
    Path(".gitignore").write_text("out/\n")
    Path("in/.gitignore").write_text("d.py\n")
    assert found() == ["a.py", "in/c.py"]
    assert found("in", "out") == ["in/c.py", "out/b.py"]
    assert found(respect_gitignore=False) == ["a.py", "in/c.py", "in/d.py", "out/b.py"]
    assert found("in", respect_gitignore=False) == ["in/c.py", "in/d.py"]


def test_links_are_followed_once_and_the_real_name_is_printed(here: Path) -> None:
    tree("real/x.py", "real/deep/y.py", "z.py")
    Path("a_link").symlink_to("real")
    Path("b_link").symlink_to("real/deep")
    Path("a.py").symlink_to("z.py")
    assert found() == ["real/deep/y.py", "real/x.py", "z.py"]
    assert found("a_link") == ["a_link/deep/y.py", "a_link/x.py"]
    assert found("a_link", "real", "a.py", "z.py") == ["real/deep/y.py", "real/x.py", "z.py"]


def test_links_to_places_elsewhere(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "pkg").mkdir()
    (other / "pkg/x.py").touch()
    (other / "pkg/build").mkdir()
    (other / "pkg/build/y.py").touch()
    (other / "one.py").touch()
    (other / "one.txt").touch()
    tree("a/a.py")
    Path("a/pkg").symlink_to(other / "pkg")
    Path("a/z_again").symlink_to(other / "pkg")
    Path("a/one.py").symlink_to(other / "one.py")
    Path("a/two.py").symlink_to(other / "one.txt")
    Path("a/three").symlink_to(other / "one.py")
    Path("build").symlink_to(other)
    assert found() == ["a/a.py", "a/one.py", "a/pkg/x.py", "a/two.py"]


def test_loops_of_links_end(here: Path) -> None:
    tree("a/x.py", "b/y.py")
    Path("a/up").symlink_to("..")
    Path("a/self").symlink_to(".")
    Path("a/b").symlink_to("../b")
    Path("b/a").symlink_to("../a")
    Path("loop").symlink_to("loop")
    Path("loop.py").symlink_to("loop.py")
    assert found() == ["a/x.py", "b/y.py"]
    assert found("a") == ["a/b/y.py", "a/x.py"]


def test_links_that_lead_nowhere_are_passed_over_unless_named(here: Path) -> None:
    tree("x.py")
    Path(".#x.py").symlink_to("user@host.1234")
    assert found() == ["x.py"]
    with pytest.raises(LintSettingsError, match=r"^there is no file or folder '\.#x\.py'"):
        found(".#x.py")


def test_a_file_with_two_names_is_linted_once(here: Path) -> None:
    tree("a.py")
    os.link("a.py", "b.py")
    assert found() == ["a.py"]


def test_a_folder_called_like_a_file_and_what_is_no_file(here: Path) -> None:
    tree("pkg.py/x.py")
    os.mkfifo("pipe.py")
    assert found() == ["pkg.py/x.py"]
    assert find_files([Path("pipe.py")], Settings()) == ([], [Failure("pipe.py", "not a regular file")])


@contextmanager
def unreadable(monkeypatch: pytest.MonkeyPatch, *folders: str) -> Iterator[None]:
    """As if the user might not list some folders; a superuser may, whatever their mode."""
    scandir = os.scandir
    refused = {os.path.abspath(folder) for folder in folders}

    def refuse(path: str) -> Any:
        if path in refused:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        yield


def test_a_folder_that_cannot_be_read_is_told_and_the_others_are_walked(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree("a/x.py", "b/y.py", "b/c/z.py", "d.py")
    with unreadable(monkeypatch, "b/c", "a"):
        files, failures = find_files([Path()], Settings())
    assert [file.name for file in files] == ["b/y.py", "d.py"]
    assert failures == [Failure("a", "permission denied"), Failure("b/c", "permission denied")]
    with unreadable(monkeypatch, "."):
        assert find_files([Path(), Path("b")], Settings())[1] == [Failure(".", "permission denied")]


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may read every folder; the simulated test above stands in")
def test_a_folder_whose_mode_forbids_reading_is_told(here: Path) -> None:
    tree("a/x.py", "b.py")
    os.chmod("a", 0)
    try:
        files, failures = find_files([Path()], Settings())
    finally:
        os.chmod("a", 0o700)
    assert [file.name for file in files] == ["b.py"]
    assert failures == [Failure("a", "permission denied")]


def test_a_path_that_does_not_exist_is_told_with_near_names(here: Path) -> None:
    tree("src/train.py", "src/trainer.py", "src/data.py")
    with pytest.raises(LintSettingsError) as caught:
        found("src", "src/trian.py")
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        f"there is no file or folder 'src/trian.py'\n  {here / 'src'} has no 'trian.py'; near: train.py, trainer.py"
    )
    with pytest.raises(LintSettingsError) as caught:
        found("srk/train.py")
    assert str(caught.value) == f"there is no file or folder 'srk/train.py'\n  {here} has no 'srk'; near: src"
    with pytest.raises(LintSettingsError, match=r"has no 'zzz'; it holds: data\.py, train\.py, trainer\.py$"):
        found("src/zzz")
    with pytest.raises(LintSettingsError, match=r"^there is no file or folder 'src/data\.py/x'\n"):
        found("src/data.py/x")
    Path("empty").mkdir()
    with pytest.raises(LintSettingsError, match=r"it holds: nothing$"):
        found("empty/\x1b[31mx")


def test_a_name_that_is_no_text_is_found(here: Path) -> None:
    name = os.fsdecode(b"\xff.py")
    tree(name, "sub/é.py")
    Path(".gitignore").write_text("a?\n")
    assert found() == ["sub/é.py", name]


def test_deep_nesting(here: Path) -> None:
    folder = Path(*["d"] * 900)
    folder.mkdir(parents=True)
    (folder / "x.py").touch()
    assert found() == [str(folder / "x.py")]


def test_the_order_of_the_file_system_does_not_count(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(*(f"{a}/{b}.py" for a in "cab" for b in "zyx"))
    Path("l").symlink_to("a")
    wanted = found()
    scandir = os.scandir
    chance = random.Random(0)

    @contextmanager
    def shuffled(path: str) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(path) as entries:
            rows = list(entries)
        chance.shuffle(rows)
        yield rows

    monkeypatch.setattr(os, "scandir", shuffled)
    assert [found() for _ in range(5)] == [wanted] * 5


def test_a_tree_of_3000_files_is_quick(here: Path) -> None:
    for number in range(60):
        folder = Path(f"p{number % 6}/q{number}")
        folder.mkdir(parents=True)
        for each in range(50):
            (folder / f"m{each}.py").touch()
    Path(".gitignore").write_text("".join(f"out{n}/\n*.x{n}\n*.y[{n}z]\n" for n in range(30)))
    start = time.perf_counter()
    files = found()
    took = time.perf_counter() - start
    assert len(files) == 3000
    # About 0.1 s where nothing else runs; the limit leaves room for shared machines, and still notices a stat of every
    # file's ancestors or patterns that are read anew in each folder.
    assert took < 1.5
