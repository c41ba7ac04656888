"""The files that are linted together: who has a name, and what is kept of them."""

from __future__ import annotations

import ast

import pytest

from frostline.lint import project as module
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.project import Dependencies, Project, name_of
from frostline.lint.source import Source


def project_of(files: dict[str, str], opened: list[str] | None = None) -> Project:
    def open_file(name: str) -> ModuleWalk | None:
        if opened is not None:
            opened.append(name)
        if files[name] == "broken":
            return None
        name_in_tree = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        return ModuleWalk(Source(name, files[name]), ast.parse(files[name]), name_in_tree, project)

    project = Project(files, open_file, lambda name: files[name])
    return project


FILES = {
    "main.py": "from pkg.helpers import f\n",
    "pkg/__init__.py": "from .helpers import f as g\nfrom pkg import deep\n",
    "pkg/helpers.py": "def f(): pass\nclass A:\n    def m(self): pass\n",
    "pkg/deep.py": "from pkg.helpers import *\n",
    "other/helpers.py": "def f(): pass\n",
    "bad.py": "broken",
}


def place(project: Project, name: str, near: str = "main.py") -> str | None:
    found = project.find(name, near)
    return f"{found[0].source.path}:{found[1].name}" if found is not None else None


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("pkg.helpers.f", "pkg/helpers.py:f"),
        ("pkg.helpers.A", "pkg/helpers.py:A"),
        ("pkg.helpers.A.m", "pkg/helpers.py:A.m"),
        ("pkg.g", "pkg/helpers.py:f"),
        ("pkg.deep.f", "pkg/helpers.py:f"),
        ("pkg.nothing", None),
        ("pkg.helpers.nothing", None),
        ("nowhere.f", None),
        ("bad.f", None),
        ("f", None),
        ("", None),
    ],
)
def test_where_a_name_comes_from(name: str, wanted: str | None):
    assert place(project_of(FILES), name) == wanted


def test_of_two_files_by_one_name_the_nearest_is_meant():
    project = project_of(FILES)
    assert place(project, "helpers.f", "other/main.py") == "other/helpers.py:f"
    assert place(project, "helpers.f", "pkg/main.py") == "pkg/helpers.py:f"


def test_without_files_nothing_is_found():
    assert Project().find("a.b", "c.py") is None
    assert not Project().is_imported("a", "c.py")


def test_a_file_is_opened_once_and_let_go_of_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    project = project_of(FILES, opened)
    for _ in range(3):
        place(project, "pkg.helpers.f")
        place(project, "bad.f")
    assert opened == ["pkg/helpers.py", "bad.py"]
    project.trim()
    assert project.kept("pkg/helpers.py") is not None
    monkeypatch.setattr(module, "_MOST_LINES", 2)
    project.trim()
    assert project.kept("pkg/helpers.py") is None
    assert place(project, "pkg.helpers.f") == "pkg/helpers.py:f"
    assert opened == ["pkg/helpers.py", "bad.py", "pkg/helpers.py"]
    project.forget()
    assert project.kept("pkg/helpers.py") is None
    assert place(project, "pkg.helpers.f") == "pkg/helpers.py:f"


def test_files_that_import_each_other_in_a_circle():
    project = project_of({"a.py": "from b import f\n", "b.py": "from a import f\n"})
    assert place(project, "a.f") is None


def test_what_a_result_rests_on():
    project = project_of(FILES)
    assert project.depends_on("main.py") == Dependencies()
    place(project, "pkg.g")
    place(project, "nowhere.thing.f")
    found = project.depends_on("main.py")
    assert found.files == {"pkg/__init__.py", "pkg/helpers.py"}
    assert found.names >= {"pkg", "helpers", "nowhere", "thing"}
    assert not found.callers
    project.is_imported("f", "pkg/helpers.py")
    assert project.depends_on("main.py").callers
    assert project.depends_on("other.py") == Dependencies()


def test_what_an_import_asked_for_before_counts_for_those_who_ask_it_later():
    project = project_of(FILES)
    place(project, "helpers.f", "pkg/deep.py")
    place(project, "pkg.deep.nothing", "main.py")
    assert "pkg/helpers.py" in project.depends_on("main.py").files


def test_who_is_imported_elsewhere():
    files = {
        "a.py": "from b import (\n    one as x,\n    two,\n)  # three\n",
        "b.py": "def one(): pass\ndef own(): pass\nfrom c import own\n",
        "c.py": "def f():\n    from b import late\nimport b\n",
    }
    project = project_of(files)
    told = {name: project.is_imported(name, "b.py") for name in ("one", "two", "three", "own", "late", "b")}
    assert told == {"one": True, "two": True, "three": False, "own": False, "late": True, "b": False}


def test_names_of_files():
    assert [name_of(file) for file in ("a.py", "x/a.py", "x/__init__.py", "x.y/a.b.py", "__init__.py")] == [
        *("a", "a", "x", "a.b", "")
    ]
