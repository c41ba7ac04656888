"""One file: what of it is looked at, what is told, in which order, and what silences it."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frostline.findings import Safety, Severity
from frostline.lint import engine
from frostline.lint.diagnostic import Edit, Failure, Fix
from frostline.lint.engine import forget_packages, lint, module_name, open_walk
from frostline.lint.file_view import FileView
from frostline.lint.project import Project
from frostline.lint.rule import LintRule, Violation
from frostline.lint.source import Source

Check = Callable[[FileView], Iterator[Violation]]


def rule(code: str, check: Check, *triggers: str) -> LintRule:
    words = dict.fromkeys(("what", "why", "example", "instead", "remedy", "how_safe", "false_alarms", "source"), "")
    return LintRule(code=code, safety=Safety.SAFE, triggers=triggers or ("",), check=check, **words)


def naming(*names: str) -> Check:
    def check(view: FileView) -> Iterator[Violation]:
        for node in view.nodes(ast.Name):
            if node.id in names:
                yield Violation(node, f"{node.id} is bad", remedy="another name")

    return check


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def only(*given: LintRule) -> None:
        monkeypatch.setattr(engine, "all_rules", lambda: {each.code: each for each in given})

    return only


def source(text: str) -> Source:
    return Source("a.py", textwrap.dedent(text))


def places(text: str) -> list[tuple[str, int, int]]:
    found, failure = lint(source(text))
    assert failure is None
    return [(each.finding.code, each.finding.line, each.finding.column) for each in found]


def test_findings_are_in_the_order_of_the_text_then_of_codes(rules):
    rules(rule("M201", naming("b", "a")), rule("F101", naming("a", "c")))
    assert places("c = b\na\n") == [("F101", 1, 1), ("M201", 1, 5), ("F101", 2, 1), ("M201", 2, 1)]


def test_the_first_thing_said_of_a_place_is_kept(rules):
    def twice(view: FileView) -> Iterator[Violation]:
        (node,) = view.nodes(ast.Name)
        yield Violation(node, "first")
        yield Violation(node, "second")

    rules(rule("F101", twice), rule("M201", naming("a")))
    found, _ = lint(source("a\n"))
    assert [(each.finding.code, each.finding.message) for each in found] == [("F101", "first"), ("M201", "a is bad")]


def test_a_finding_has_all_that_a_violation_says(rules):
    def check(view: FileView) -> Iterator[Violation]:
        (node,) = view.nodes(ast.Call)
        edits = (view.behind(node, "!"), view.replaced(node.func, "h"))
        yield Violation(
            node, "a call", ("seen", "twice"), "h()\nor none", Severity.WARNING, edits, Safety.UNSAFE, "", inferred=True
        )

    rules(rule("F101", check))
    (one,), _ = lint(source("class A:\n    def f(self):\n        π = g(\n            1)  # é\n"))
    finding = one.finding
    assert (finding.line, finding.column, one.end_line, one.end_column, one.cell) == (3, 13, 4, 15, 0)
    assert (finding.file, finding.where, finding.source) == ("a.py", "A.f", "π = g(")
    assert (finding.evidence, finding.remedy) == ("seen\ntwice", "h()\nor none")
    assert (finding.severity, finding.safety, finding.inferred) == (Severity.WARNING, Safety.UNSAFE, True)
    assert one.fix == Fix((Edit(38, 39, "h"), Edit(55, 55, "!")), Safety.UNSAFE, "h()")


def test_comments_silence_what_stands_on_their_lines(rules):
    rules(rule("F101", naming("a")), rule("M201", naming("a")))
    assert places("a  # noqa\n") == []
    assert places("a  # noqa: F101\n") == [("M201", 1, 1)]
    assert places("a  # noqa: M, F1\n") == []
    assert places("# noqa\na\n") == [("F101", 2, 1), ("M201", 2, 1)]
    assert places("# frostline: noqa\na\n") == places("# flake8: noqa\na\n")
    assert places("x = '# noqa'; a\n") == [("F101", 1, 15), ("M201", 1, 15)]


def test_a_comment_at_the_end_of_a_statement_counts_for_all_its_lines_but_not_for_a_block(rules):
    def check(view: FileView) -> Iterator[Violation]:
        for node in view.nodes(ast.Call, ast.For):
            yield Violation(node, "bad")

    rules(rule("F101", check))
    assert places("f(\n  1,\n)  # noqa: F101\n") == []
    assert places("for i in x:\n    pass  # noqa: F101\n") == [("F101", 1, 1)]
    assert places("for i in x:  # noqa: F101\n    pass\n") == []


def test_a_rule_is_asked_only_where_one_of_its_words_stands(rules):
    asked: list[str] = []

    def check(view: FileView) -> Iterator[Violation]:
        asked.append(view.source.text)
        return iter(())

    rules(rule("F101", check, "one", "two"))
    for text in ("x = one", "x = 'two'", "three", "# two"):
        lint(Source("a.py", text))
    assert asked == ["x = one", "x = 'two'", "# two"]


def test_a_file_that_concerns_no_rule_must_parse_all_the_same(rules):
    rules(rule("F101", naming("a"), "nowhere"))
    assert lint(Source("a.py", "x = = 1")) == ([], Failure("a.py", "invalid syntax", 1, 5))
    assert lint(Source("a.py", "x = 1")) == ([], None)


def test_what_is_too_deep_for_the_rules_is_a_failure_and_leaves_nothing_behind(rules):
    def check(view: FileView) -> Iterator[Violation]:
        raise RecursionError
        yield

    rules(rule("F101", check))
    project = Project(["a.py"])
    assert lint(Source("a.py", "x"), project) == ([], Failure("a.py", "nested too deeply to be parsed"))
    assert project.kept("a.py") is None


def test_a_file_that_another_one_asked_for_is_not_parsed_again(rules, monkeypatch: pytest.MonkeyPatch):
    rules(rule("F101", naming("a")))
    project = Project(["a.py", "b.py"], lambda _: open_walk(Source("b.py", "a = 1\n"), project))
    opened = project.open("b.py", "a.py")
    assert opened is not None
    monkeypatch.setattr(engine, "parse", lambda _: pytest.fail("parsed again"))
    found, _ = lint(Source("b.py", "a = 1\n"), project)
    assert [each.finding.line for each in found] == [1]


def test_what_does_not_parse_is_nothing_to_import_from():
    assert open_walk(Source("a.py", "def ("), Project()) is None


def test_the_name_of_a_module_begins_at_the_outermost_package(tmp_path: Path):
    inner = tmp_path / "outer" / "pkg" / "sub"
    inner.mkdir(parents=True)
    forget_packages()
    assert module_name(str(inner / "a.py")) == "a"
    for folder in (inner, inner.parent):
        (folder / "__init__.py").touch()
    assert module_name(str(inner / "a.py")) == "a"  # it is remembered which folders are packages
    forget_packages()
    assert module_name(str(inner / "a.py")) == "pkg.sub.a"
    assert module_name(str(inner / "__init__.py")) == "pkg.sub"
    assert module_name(str(tmp_path / "outer" / "train.py")) == "train"
    assert module_name("__init__.py") == "__init__"
