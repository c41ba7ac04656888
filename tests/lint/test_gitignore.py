"""What git ignores: the same answers as ``git check-ignore``, and nothing imported where there is nothing to read."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.errors import MissingExtra
from frostline.lint.gitignore import GitIgnore, git_root, read_pattern

QUIET = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


def repository(root: Path) -> Path:
    """The least that git takes for a repository; much faster than ``git init``."""
    for name in ("objects", "refs", "info"):
        (root / ".git" / name).mkdir(parents=True)
    (root / ".git/HEAD").write_text("ref: refs/heads/main\n")
    return root


def tree(root: Path, *names: str) -> None:
    """Empty files, and folders where a name ends in a slash."""
    for name in names:
        place = root / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            place.touch()


def kept(root: Path) -> set[str]:
    """What a walk from a folder comes upon, paths from there."""
    found: set[str] = set()
    waiting = [(root, GitIgnore.of(root))]
    while waiting:
        folder, rules = waiting.pop()
        for entry in os.scandir(folder):
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.name == ".git" or rules.ignores(entry.name, is_folder=is_folder):
                continue
            found.add(Path(entry.path).relative_to(root).as_posix())
            if is_folder:
                waiting.append((Path(entry.path), rules.below(entry.name, entry.path)))
    return found


def kept_by_git(root: Path) -> set[str]:
    """The same, as git says."""
    every = {each.relative_to(root).as_posix() for each in root.rglob("*")}
    every = {each for each in every if ".git" not in each.split("/")}
    answer = subprocess.run(
        ["git", "-c", "core.excludesFile=", "check-ignore", "--no-index", "--stdin", "-z"],
        cwd=root,
        env=QUIET,
        input="\0".join(every).encode(),
        capture_output=True,
        check=False,
    )
    # 1 says that nothing is ignored.
    assert answer.returncode in {0, 1}, answer.stderr
    return every - set(answer.stdout.decode().split("\0"))


NAMES = ["a", "b", "ab", "a.py", "b.py", "x y", "a]", "!a", "#a", "a-b", "A", "é", "a1"]
PARTS = [
    "a", "b", "ab", "*", "?", "*.py", "a*", "*b", "**", "**a", "a**b", "?**", "[ab]", "[!a]", "[^a]*", "[a-c]*", "[a-]",
    "[]a]", "[!]]*", "[z-a]", "[[:digit:]]", "a[[:digit:]]", "[[:alpha:][:digit:]]", "a.p[yx]", "\\!a", "\\#a", "x\\ y",
    "a]", "A", "é", "[é]", "#a", "a\\",
]  # fmt: skip
LINES = st.builds(
    lambda bang, front, parts, behind, end: bang + front + "/".join(parts) + behind + end,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=3),
    st.sampled_from(["", "", "/"]),
    st.sampled_from(["", "", "", "  ", "\r", "\t", "\\ ", "\\"]),
)
PATHS = st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4), min_size=2, max_size=8)


@settings(max_examples=120)
@given(PATHS, st.lists(st.tuples(st.integers(0, 20), st.lists(LINES, min_size=1, max_size=4)), max_size=3))
def test_it_decides_as_git_does(paths: list[list[str]], rules: list[tuple[int, list[str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = repository(Path(folder))
        for path in paths:
            place = root.joinpath(*path)
            # What is a file in one path may be a folder in another; the first one counts.
            if not any(each.is_file() for each in (place, *place.parents)) and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
        folders = sorted(each for each in root.rglob("*") if each.is_dir() and ".git" not in each.parts)
        homes = [root / ".git/info/exclude", root / ".gitignore", *(each / ".gitignore" for each in folders)]
        for number, lines in rules:
            homes[number % len(homes)].write_text("\n".join(lines), newline="")
        assert kept(root) == kept_by_git(root)


def test_a_walk_without_rules_fails_the_same_check(tmp_path: Path) -> None:
    root = repository(tmp_path)
    (root / ".gitignore").write_text("a.py\n")
    tree(root, "a.py")
    assert kept(root) == kept_by_git(root) == {".gitignore"}
    assert {".gitignore", "a.py"} != kept_by_git(root)


def test_files_of_inner_folders_negations_and_anchors(tmp_path: Path) -> None:
    root = repository(tmp_path)
    tree(root, "out.py", "a/out.py", "a/b/out.py", "a/b/keep.py", "docs/x.py", "a/docs/x.py", "own/x.py")
    (root / ".gitignore").write_text("out.py\n/docs\nkeep.py\n")
    (root / "a/b/.gitignore").write_text("!keep.py\n!out.py\n")
    (root / ".git/info/exclude").write_text("own/\n")
    assert kept(root) == kept_by_git(root)
    assert {each for each in kept(root) if each.endswith(".py")} == {"a/b/out.py", "a/b/keep.py", "a/docs/x.py"}


def test_nothing_below_a_folder_that_is_left_out_is_taken_in_again(tmp_path: Path) -> None:
    root = repository(tmp_path)
    tree(root, "out/keep.py", "half/keep.py", "half/x.py")
    (root / ".gitignore").write_text("out/\n!out/keep.py\nhalf/*\n!half/keep.py\n")
    assert kept(root) == kept_by_git(root) == {".gitignore", "half", "half/keep.py"}


def test_windows_line_ends_a_byte_order_mark_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    root = repository(tmp_path)
    tree(root, "a.py", "b.py", "c.py", os.fsdecode(b"\xff.py"))
    (root / ".gitignore").write_bytes(b"\xef\xbb\xbfa.py\r\n\r\n# b.py\r\n*\xff.py\r\n")
    assert kept(root) == {".gitignore", "b.py", "c.py"}


def test_a_folder_that_is_named_below_the_root_is_under_all_rules_from_there_down(tmp_path: Path) -> None:
    root = repository(tmp_path)
    tree(root, "a/b/x.py", "a/b/y.py", "a/b/z.py")
    (root / ".gitignore").write_text("/a/b/x.py\n")
    (root / "a/.gitignore").write_text("b/y.py\n")
    assert kept(root / "a/b") == {"z.py"}


@pytest.mark.parametrize("rule", ["*", "env/", "env/**", "pkg"])
def test_a_folder_that_is_named_is_looked_into_although_it_is_left_out(tmp_path: Path, rule: str) -> None:
    root = repository(tmp_path)
    tree(root, "env/lib/pkg/x.py", "env/lib/pkg/y.py")
    (root / ".gitignore").write_text(f"{rule}\n")
    (root / "env/lib/pkg/.gitignore").write_text("y.py\n")
    assert not [each for each in kept(root) if each.endswith(".py")]
    assert kept(root / "env/lib/pkg") == {".gitignore", "x.py"}


def test_outside_of_a_repository_the_files_below_count(tmp_path: Path) -> None:
    tree(tmp_path, "top/a.py", "top/b.py", "top/in/a.py", "top/in/c.py")
    (tmp_path / ".gitignore").write_text("*.py\n")
    (tmp_path / "top/.gitignore").write_text("a.py\n")
    (tmp_path / "top/in/.gitignore").write_text("c.py\n")
    assert git_root(tmp_path) is None
    assert kept(tmp_path / "top") == {".gitignore", "b.py", "in", "in/.gitignore"}


def test_a_repository_within_is_its_own(tmp_path: Path) -> None:
    root = repository(tmp_path)
    tree(root, "in/a.py", "in/b.py")
    (root / ".gitignore").write_text("a.py\n")
    inner = repository(root / "in")
    (inner / ".git/info/exclude").write_text("b.py\n")
    assert kept(root) == {".gitignore", "in", "in/a.py"}
    assert kept(inner) == kept_by_git(inner) == {"a.py"}


def test_a_worktree_has_the_list_of_its_repository(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    (main / ".git/info/exclude").write_text("a.py\n")
    (main / ".git/worktrees/side").mkdir(parents=True)
    (main / ".git/worktrees/side/commondir").write_text("../..\n")
    side = tmp_path / "side"
    tree(side, "a.py", "b.py")
    (side / ".git").write_text(f"gitdir: {main / '.git/worktrees/side'}\n")
    assert kept(side) == {"b.py"}


def test_a_link_to_a_folder_is_no_folder(tmp_path: Path) -> None:
    root = repository(tmp_path)
    tree(root, "real/x.py")
    (root / "link").symlink_to("real")
    (root / ".gitignore").write_text("link/\n")
    assert kept(root) == kept_by_git(root) == {".gitignore", "link", "real", "real/x.py"}


@pytest.mark.parametrize("line", ["", "#", "# a", "/", "!", "!/", "   "])
def test_lines_that_say_nothing(line: str) -> None:
    assert read_pattern(line) is None


def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").mkdir()
    tree(tmp_path, "a.py")
    assert kept(tmp_path) == {".gitignore", "a.py"}


def test_the_package_is_missed_only_where_a_pattern_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pathspec", None)
    tree(tmp_path, "a.py", "b.so", "c.py")
    assert kept(tmp_path) == {"a.py", "b.so", "c.py"}
    (tmp_path / ".gitignore").write_text("a.py\n*.so\n")
    assert kept(tmp_path) == {".gitignore", "c.py"}
    (tmp_path / ".gitignore").write_text("a.p[yx]\n")
    with pytest.raises(MissingExtra, match=r"^Reading \.gitignore needs the package 'pathspec'.*\n.*frostline\[cli\]"):
        kept(tmp_path)


def test_without_a_gitignore_it_is_not_imported(tmp_path: Path) -> None:
    tree(tmp_path, "a.py")
    script = (
        "import sys; from pathlib import Path; from frostline.lint.discovery import find_files\n"
        "from frostline.lint.settings import Settings\n"
        "find_files([Path(sys.argv[1])], Settings())\n"
        "print('pathspec' in sys.modules, 'torch' in sys.modules)"
    )
    run = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "False False\n"
    (tmp_path / ".gitignore").write_text("a?\n")
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "True False\n"
