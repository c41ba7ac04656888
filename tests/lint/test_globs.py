"""Globs of the settings: names, paths below a root, wildcards, and what is dropped for a folder that was named."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.lint.globs import Globs

ROOT = Path("/home/project")


def fits(pattern: str, path: str) -> bool:
    return Globs([pattern], ROOT).match(f"/home/project/{path}")


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("build", "build"),
        ("build", "a/b/build"),
        ("./build/", "build"),
        ("gen/out", "gen/out"),
        ("gen/", "gen"),
        ("*_pb2.py", "a/x_pb2.py"),
        ("tests/*", "tests/deep/test_x.py"),
        ("**/gen/*.py", "gen/x.py"),
        ("**/gen/*.py", "a/b/gen/x.py"),
        ("a/**/x.py", "a/x.py"),
        ("a/**/x.py", "a/b/c/x.py"),
        ("?.py", "a.py"),
        ("[a-c].py", "b.py"),
        ("[!a-c].py", "d.py"),
        ("[]].py", "].py"),
        ("x[0-9].py", "x7.py"),
        ("x.{py,ipynb}", "x.ipynb"),
        ("{a,b{1,2}}.py", "b2.py"),
        ("a[.py", "a[.py"),
        ("a{.py", "a{.py"),
        ("/home/project/gen", "gen"),
        ("/home/*/gen", "gen"),
    ],
)
def test_what_fits(pattern: str, path: str) -> None:
    assert fits(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("build", "build.py"),
        ("build", "build/x.py"),
        ("BUILD", "build"),
        ("gen/out", "a/gen/out"),
        ("*_pb2.py", "x_pb2.pyi"),
        ("?.py", "ab.py"),
        ("[!a-c].py", "b.py"),
        ("[z-a].py", "z.py"),
        ("x.{py,ipynb}", "x.pyc"),
        ("x.py", "xzpy"),
        ("/elsewhere/gen", "gen"),
    ],
)
def test_what_does_not_fit(pattern: str, path: str) -> None:
    assert not fits(pattern, path)


def test_the_root_itself_may_hold_wildcards() -> None:
    globs = Globs(["gen/*.py"], Path("/home/[x]"))
    assert globs.match("/home/[x]/gen/a.py")
    assert not globs.match("/home/x/gen/a.py")


def test_no_globs_fit_nothing() -> None:
    globs = Globs([], ROOT)
    assert not globs
    assert not globs.match("/home/project/x.py")
    assert Globs(["x"], ROOT)


def test_a_folder_that_is_named_drops_the_globs_that_fit_it_or_what_it_lies_in() -> None:
    globs = Globs(["site-packages", "third/*", "*_pb2.py"], ROOT)
    assert globs.without("/home/project/src") is globs
    assert globs.without("/home/project/venv/site-packages/timm").patterns == ("third/*", "*_pb2.py")
    assert globs.without("/home/project/third/timm").patterns == ("site-packages", "*_pb2.py")


@given(st.text("ab.*?", min_size=1, max_size=8), st.text("ab.", min_size=1, max_size=8))
def test_without_folders_it_is_what_fnmatch_says(pattern: str, name: str) -> None:
    assert fits(pattern, name) == fnmatch.fnmatchcase(name, pattern)


@given(st.lists(st.text("ab[]!-{},*?/.\\", max_size=8), max_size=3), st.text("ab/", max_size=6))
def test_any_text_is_a_glob(patterns: list[str], path: str) -> None:
    globs = Globs(patterns, ROOT)
    assert globs.match(f"/home/project/{path}") == any(fits(each, path) for each in patterns)
