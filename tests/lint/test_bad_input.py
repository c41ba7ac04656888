"""Whatever files hold: they are named where they cannot be linted, the others go on, and it comes to an end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.lint.diagnostic import Failure
from frostline.lint.engine import lint
from frostline.lint.parsing import TOO_DEEP
from frostline.lint.run import lint_paths, lint_source
from frostline.lint.settings import Settings
from frostline.lint.source import Source, read_source, source_from_bytes

TYPO = "from torch import nn\nnet = nn.Linear(2, 2)\nnet.weight.require_grad = False\n"
HEAD = "import itertools\nimport torch\nfrom torch import nn, optim\nmodel = nn.Linear(2, 2)\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``frostline lint``, as it is typed."""
    line = [sys.executable, "-m", "frostline", "lint", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


BROKEN = {
    "no python": (b"x = 1\ny = = 2\n", "a.py:2:5", "invalid syntax"),
    "python 2": (b"x = 1\nprint 'hello'\n", "a.py:2:1", "Missing parentheses"),
    "not closed": (b"f(1,\n  2\n", "a.py:1:2", "'(' was never closed"),
    "a string that does not end": (b"x = 'abc\n", "a.py:1:5", "unterminated string"),
    "indented wrongly": (b"if x:\n    a\n  b\n", "a.py:3:", "unindent"),
    "tabs and blanks": (b"if x:\n\ta\n        b\n", "a.py:3:", "inconsistent use of tabs"),
    "not UTF-8": (b"x = 1\n# caf\xe9\n", "a.py:2", "not UTF-8"),
    "UTF-16": ("x = 1\n".encode("utf-16"), "a.py:1", "not UTF-8, but UTF-16"),
    "a null byte": (b"x = 1\ny = '\0'\n", "a.py:2", "holds a null byte"),
    "nothing but null bytes": (b"\0" * 100, "a.py:1", "holds a null byte"),
    "an unknown encoding": (b"# -*- coding: nonsense -*-\n", "a.py:1", "nonsense"),
    "an image": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a.py:", "null byte"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_the_others_go_on(name: str, here: Path):
    content, place, message = BROKEN[name]
    Path("a.py").write_bytes(content)
    Path("b.py").write_text(TYPO)
    report = lint_paths([Path()], Settings(), cache=False)
    (failure,) = report.failures
    shown = ":".join(str(part) for part in (failure.file, failure.line, failure.column) if part)
    assert shown.startswith(place), shown
    assert message in failure.message
    assert [each.finding.file for each in report.diagnostics] == ["b.py"]


def test_the_exit_code_is_2_only_where_nothing_else_was_found(here: Path):
    Path("a.py").write_text("x = 1\ny = = 2\n")
    alone = command(".", "--output-format", "concise")
    assert (alone.returncode, "a.py:2:5: " in alone.stderr) == (2, True), alone
    Path("b.py").write_text(TYPO)
    both = command(".", "--output-format", "concise")
    assert (both.returncode, "b.py:3:" in both.stdout, "a.py:2:5: " in both.stderr) == (1, True, True), both
    document = json.loads(command(".", "--output-format", "json").stdout)
    assert [(each["file"], each["line"]) for each in document["failures"]] == [("a.py", 2)]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\r"),
        lambda text: text.rstrip(b"\n"),
        lambda text: b"# -*- coding: cp1252 -*-\n# \x80\n".replace(b"\n", b"") + b"\n" + text,
        lambda text: b"\x0c" + text,
    ],
    ids=["mark", "windows", "mark and windows", "old mac", "no end", "code page", "form feed"],
)
def test_marks_line_ends_and_encodings_are_read(change, here: Path):
    content = change(TYPO.encode())
    Path("a.py").write_bytes(content)
    report = lint_paths([Path()], Settings(), cache=False)
    assert report.failures == ()
    assert [each.finding.column for each in report.diagnostics] == [1]
    done = command(".", "--fix")
    assert done.returncode == 0, done
    assert Path("a.py").read_bytes() == content.replace(b"require_grad", b"requires_grad")


def test_symbolic_links_in_a_circle(here: Path):
    Path("sub").mkdir()
    Path("sub/a.py").write_text(TYPO)
    Path("sub/up").symlink_to("..", target_is_directory=True)
    Path("sub/self").symlink_to("self")
    Path("loop.py").symlink_to("other.py")
    Path("other.py").symlink_to("loop.py")
    Path("again.py").symlink_to("sub/a.py")
    done = command(".", "--output-format", "concise")
    assert done.returncode == 1, done
    assert done.stdout.count("F101") == 1
    assert "sub/a.py:3:" in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may read every file; the simulated test below stands in")
def test_an_unreadable_file_is_named(here: Path):
    Path("a.py").write_text(TYPO)
    Path("a.py").chmod(0)
    Path("b.py").write_text(TYPO)
    report = lint_paths([Path()], Settings(), cache=False)
    assert report.failures == (Failure("a.py", "permission denied"),)
    assert [each.finding.file for each in report.diagnostics] == ["b.py"]


def test_an_unreadable_file_is_named_whoever_runs_it(here: Path, monkeypatch: pytest.MonkeyPatch):
    Path("a.py").write_text(TYPO)
    Path("b.py").write_text(TYPO)
    opened = os.open

    def refuse(path: str | Path, *rest: int, **named: int) -> int:
        if Path(path).name == "a.py":
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    report = lint_paths([Path()], Settings(), cache=False, jobs=1)
    assert report.failures == (Failure("a.py", "permission denied"),)
    assert [each.finding.file for each in report.diagnostics] == ["b.py"]


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(here: Path):
    os.mkfifo("a.py")
    Path("b.py").write_text(TYPO)
    assert [each.finding.file for each in lint_paths([Path()], Settings(), cache=False).diagnostics] == ["b.py"]
    assert [each.message for each in lint_paths([Path("a.py")], Settings()).failures] == ["not a regular file"]


def test_a_read_only_file_under_fix_is_refused_by_name_and_the_others_are_mended(here: Path):
    Path("a.py").write_text(TYPO)
    Path("a.py").chmod(0o444)
    Path("b.py").write_text(TYPO)
    done = command(".", "--fix", "--output-format", "concise")
    assert "a.py: cannot be written: it is read-only" in done.stderr, done
    assert (done.returncode, Path("a.py").read_text()) == (1, TYPO)
    assert Path("b.py").read_text() == TYPO.replace("require_grad", "requires_grad")


def test_an_unknown_code_is_wrong_usage(here: Path):
    Path("a.py").write_text(TYPO)
    done = command(".", "--select", "F999")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no rule of the linter is called 'F999', asked for by option --select" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_in_a_file_of_another_name(here: Path):
    Path("a.py").write_text(TYPO)
    Path("other.toml").write_text("[tool.frostline.lint]\nselect = ['M']\n")
    assert command(".").returncode == 1
    assert command(".", "--config", "other.toml").returncode == 0


# Depth.

DEEP = {
    "a sum": HEAD + "p.requires_grad = " + " + ".join(["a"] * 3_000),
    "a sum of parameters": HEAD + f"opt = optim.SGD({' + '.join(['list(model.parameters())'] * 900)}, lr=1)",
    "attributes": HEAD + "model" + ".a" * 3_000 + ".requires_grad = False",
    "calls": HEAD + "model" + ".train()" * 3_000,
    "indexes": HEAD + "model" + "[0]" * 3_000 + ".requires_grad_(False)",
    "brackets": HEAD + "p.requires_grad = " + "(" * 150 + "1" + ")" * 150,
    "too many brackets": HEAD + "p.requires_grad = " + "(" * 3_000 + "1" + ")" * 3_000,
    "lists": HEAD + "p.requires_grad = " + "[" * 150 + "1" + "]" * 150,
    "not": HEAD + "p.requires_grad = " + "not " * 3_000 + "1",
    "minus": HEAD + "p.requires_grad = " + "-" * 3_000 + "1",
    "lambdas": HEAD + "p.requires_grad = " + "lambda: " * 900 + "1",
    "choices": HEAD + "p.requires_grad = " + "a if b else " * 900 + "1",
    "modules": HEAD + "net = " + "nn.Sequential(" * 90 + "nn.ReLU()" + ")" * 90 + "\nnet.requires_grad_(False)",
    "branches": HEAD + "".join("  " * i + "if a:\n" for i in range(90)) + "  " * 90 + "model.eval()",
    "loops": HEAD
    + "".join("  " * i + "for p in model.parameters():\n" for i in range(19))
    + "  " * 19
    + "p.requires_grad=0",
    "elif": HEAD + "if a: pass\n" + "".join(f"elif a == {i}: model.eval()\n" for i in range(2_000)),
    "functions": HEAD + "".join("  " * i + "def f(model):\n" for i in range(90)) + "  " * 90 + "model.eval()",
    "classes": HEAD + "".join("  " * i + "class A(nn.Module):\n" for i in range(90)) + "  " * 90 + "x = model.eval()",
    "comprehensions": HEAD + "x = " + "[" * 80 + "p" + " for p in model.parameters()]" * 80,
    "f-strings": HEAD + "x = f'{model.eval()}'" + " f'{x}'" * 2_000,
    "functions that call the next one": HEAD
    + "".join(f"def f{i}(model):\n    f{i + 1}(model)\n" for i in range(2_000))
    + "def f2000(model):\n    model.eval()\n",
    "functions that call themselves": HEAD
    + "def f(model):\n    model.eval()\n    f(model)\n    g(model)\ndef g(m):\n    f(m)\n",
    "classes of classes": HEAD
    + "class A0(nn.Module): pass\n"
    + "".join(f"class A{i}(A{i - 1}): pass\n" for i in range(1, 999)),
    "a class of itself": HEAD + "class A(A): pass\nclass B(C): pass\nclass C(B): pass\nA().eval(); B().eval()\n",
    "lists of lists": HEAD + "ps = list(model.parameters())\n" + "ps = [ps, ps]\n" * 60 + "opt = optim.SGD(ps)\n",
    "chains of chains": HEAD
    + "ps = model.parameters()\n"
    + "ps = itertools.chain(ps, ps)\n" * 60
    + "opt = optim.SGD(ps)\n",
    "sums of sums": HEAD + "ps = list(model.parameters())\n" + "ps = ps + ps\n" * 60 + "opt = optim.SGD(ps)\n",
    "loops over loops": HEAD + "m = model\n" + "for m in m.children():\n    m.eval()\n" * 500,
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_nesting_comes_to_an_end(name: str):
    before = time.process_time()
    source = source_from_bytes((DEEP[name] + "\n").encode(), "a.py")
    assert isinstance(source, Source)
    _, failure = lint(source)
    assert failure is None or (failure.file, failure.message) == ("a.py", TOO_DEEP)
    assert time.process_time() - before < 20


def test_what_is_too_deep_does_not_spoil_the_others(here: Path):
    """A file that imports from one that is too deep is linted, and so is what comes behind it."""
    Path("deep.py").write_text(DEEP["elif"])
    Path("a.py").write_text("import deep\nfrom deep import model, f\nf(model)\n" + TYPO)
    Path("z.py").write_text(TYPO)
    report = lint_paths([Path()], Settings(), cache=False, jobs=1)
    assert [each.file for each in report.failures] == ["deep.py"]
    assert [each.finding.file for each in report.diagnostics] == ["a.py", "z.py"]


# Size: what is generated is read in a time that grows with its length, in seconds; a step that looks at
# everything for everything would take hours.

LONG = {
    "100,000 statements": lambda: HEAD + "".join(f"x{i} = {i} + y\n" for i in range(100_000)),
    "100,000 flags": lambda: HEAD + "".join(f"model.l{i}.requires_grad_(False)\n" for i in range(100_000)),
    "100,000 misspelt on one line": lambda: HEAD + "model.require_grad = 1; " * 100_000,
    "one long line with letters": lambda: HEAD + "x = ['é', " + "model.eval(), " * 50_000 + "]",
    "a function of 20,000 statements": lambda: (
        HEAD
        + "def f(model, opt):\n"
        + "".join(
            f"    model.train()\n    y{i} = model(x)\n    y{i}.backward()\n    opt.step()\n" for i in range(5_000)
        )
    ),
    "20,000 optimizers": lambda: HEAD + "".join(f"o{i} = optim.Adam(model.p{i}.parameters())\n" for i in range(20_000)),
    "a dictionary of 5 MB": lambda: (
        HEAD + "model.eval()\nd = {" + "".join(f"'k{i}': {i}, " for i in range(350_000)) + "}"
    ),
    "a list of 5 MB": lambda: HEAD + "model.eval()\nd = [" + "".join(f"{i}, " for i in range(650_000)) + "]",
    "a text of 5 MB": lambda: HEAD + "model.eval()\nd = '''" + "requires_grad optimizer\n" * 210_000 + "'''",
    "20,000 branches": lambda: HEAD + "".join(f"if a{i}:\n    b{i} = model.l{i}\n" for i in range(20_000)),
    "10,000 branches with else": lambda: (
        HEAD + "".join(f"if a{i}:\n    b{i} = model.l{i}\nelse:\n    b{i} = model.k{i}\n" for i in range(10_000))
    ),
    "3,000 functions in a chain": lambda: (
        HEAD + "".join(f"def f{i}(model):\n    f{i - 1}(model)\n    model.eval()\n" for i in range(3_000))
    ),
    "3,000 functions that call three others": lambda: (
        HEAD
        + "".join(
            f"def f{i}(model):\n    model.eval()\n" + "".join(f"    f{(i * 7 + j) % 3_000}(model)\n" for j in range(3))
            for i in range(3_000)
        )
    ),
    "200 functions that all call each other": lambda: (
        HEAD
        + "".join(
            f"def f{i}(model):\n    model.train()\n" + "".join(f"    f{j}(model)\n" for j in range(200))
            for i in range(200)
        )
    ),
    "3,000 classes": lambda: (
        HEAD
        + "class A0(nn.Module): pass\n"
        + "".join(
            f"class A{i}(A{i - 1}):\n    def f(self):\n        self.net.requires_grad_(False)\n"
            for i in range(1, 3_000)
        )
    ),
    "an optimizer of 5,000 lists": lambda: (
        HEAD
        + "ps = []\n"
        + "".join(f"if a{i}:\n    ps.append(model.l{i}.weight)\n" for i in range(5_000))
        + "opt = optim.SGD(ps)\n"
    ),
    "50,000 silenced": lambda: HEAD + "model.require_grad = 1  # noqa: F102\n" * 50_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_a_generated_file_comes_to_an_end(name: str):
    text = LONG[name]() + "\n"
    before = time.process_time()
    report = lint_source(text.encode(), "generated.py", Settings())
    assert time.process_time() - before < 100
    assert (report.failures, report.files) == ((), 1)


def test_the_text_of_a_line_that_nobody_could_read_is_cut_off():
    report = lint_source((HEAD + "model.require_grad = 1; " * 100 + "\n").encode(), "a.py", Settings(select=("F101",)))
    assert len(report.diagnostics) == 100
    assert {len(each.finding.source) for each in report.diagnostics} == {500}


# Programs that nobody wrote.

NAMES = st.sampled_from(
    ["model", "net", "self", "self.net", "opt", "optimizer", "loader", "p", "m", "x", "f", "A", "helpers"]
)
ATOMS = st.one_of(
    NAMES,
    st.sampled_from(
        ["True", "False", "None", "0", "1e-3", "'fc'", "nn.Linear(2, 2)", "nn.BatchNorm2d(3)", "{}", "[]", "..."]
    ),
)


METHODS = [
    *(
        "parameters",
        "named_parameters",
        "modules",
        "children",
        "eval",
        "train",
        "step",
        "zero_grad",
        "backward",
        "apply",
    ),
    *("requires_grad_", "state_dict", "load_state_dict", "to", "add_param_group", "append", "extend", "require_grad"),
    *("weight", "data", "grad", "param_groups", "items"),
]


def _expressions(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    methods = st.sampled_from(METHODS)
    calls = st.sampled_from(
        ["list", "filter", "optim.SGD", "optim.AdamW", "nn.Sequential", "DDP", "torch.save", "f", "A", "zip"]
    )
    return st.one_of(
        st.builds("{}.{}".format, inner, methods),
        st.builds("{}.{}({})".format, inner, methods, inner),
        st.builds("{}.{}()".format, inner, methods),
        st.builds("{}({}, {})".format, calls, inner, inner),
        st.builds("{}({}, lr={})".format, calls, inner, inner),
        st.builds("{}(*{}, **{})".format, calls, inner, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("({} + {})".format, inner, inner),
        st.builds("({} and not {})".format, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("({}, {})".format, inner, inner),
        st.builds("{{'params': {}, 'lr': {}}}".format, inner, inner),
        st.builds("[{} for p in {} if {}]".format, inner, inner, inner),
        st.builds("({} for n, p in {})".format, inner, inner),
        st.builds("(lambda p: {})".format, inner),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("{}[:-1]".format, inner),
        st.builds("f'{{{}}}'".format, NAMES),
        st.builds("(y := {})".format, inner),
        st.builds("({} == {})".format, inner, inner),
    )


EXPRESSIONS = st.recursive(ATOMS, _expressions, max_leaves=6)
TARGETS = st.one_of(
    NAMES,
    st.builds(
        "{}.{}".format, NAMES, st.sampled_from(["requires_grad", "require_grad", "training", "fc", "weight", "data"])
    ),
    st.builds("{}[{}]".format, NAMES, ATOMS),
    st.just("a, b"),
    st.just("(a, *b), c"),
)
SIMPLE = st.one_of(
    EXPRESSIONS,
    st.builds("{} = {}".format, TARGETS, EXPRESSIONS),
    st.builds("{} = {} = {}".format, TARGETS, TARGETS, EXPRESSIONS),
    st.builds("{} += {}".format, NAMES, EXPRESSIONS),
    st.builds("{}: nn.Module = {}".format, NAMES, EXPRESSIONS),
    st.builds("return {}".format, EXPRESSIONS),
    st.builds("del {}".format, NAMES),
    st.sampled_from(
        ["pass", "continue", "break", "from helpers import *", "import torch as t", "global x", "yield model"]
    ),
)


def _blocks(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    body = st.lists(inner, min_size=1, max_size=3).map("\n".join).map(_indented)
    return st.one_of(
        st.builds("for {} in {}:\n{}".format, TARGETS, EXPRESSIONS, body),
        st.builds("for i, p in enumerate({}):\n{}else:\n{}".format, EXPRESSIONS, body, body),
        st.builds("while {}:\n{}".format, EXPRESSIONS, body),
        st.builds("if {}:\n{}".format, EXPRESSIONS, body),
        st.builds("if {}:\n{}elif {}:\n{}else:\n{}".format, EXPRESSIONS, body, EXPRESSIONS, body, body),
        st.builds("with torch.no_grad(), {} as y:\n{}".format, EXPRESSIONS, body),
        st.builds("try:\n{}except E:\n{}finally:\n{}".format, body, body, body),
        st.builds("def f(model, opt={}, *args, flag=False, **kw):\n{}".format, EXPRESSIONS, body),
        st.builds(
            "class A(nn.Module):\n  x = {}\n  def __init__(self, net):\n{}".format, EXPRESSIONS, body.map(_indented)
        ),
        st.builds("class A(L.LightningModule):\n  def training_step(self, x, i):\n{}".format, body.map(_indented)),
        st.builds("match {}:\n  case {{'a': y}}:\n{}".format, EXPRESSIONS, body.map(_indented)),
        st.builds("@torch.no_grad()\nasync def g(self):\n{}".format, body),
    )


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


PROGRAMS = st.lists(st.recursive(SIMPLE, _blocks, max_leaves=8), min_size=1, max_size=8).map("\n".join)
IMPORTS = """\
import torch
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel as DDP
import lightning as L
"""


@given(PROGRAMS)
def test_any_program_is_linted_and_always_the_same(program: str):
    data = (IMPORTS + program + "\n").encode()
    one, other = (lint_source(data, "a.py", Settings()) for _ in range(2))
    assert one.to_dict() == other.to_dict()


@given(st.binary(max_size=200))
def test_any_bytes_are_linted(data: bytes):
    lint_source(data, "a.py", Settings())
    lint_source(data, "a.ipynb", Settings())


@pytest.mark.slow
def test_the_standard_library_is_linted():
    """Thousands of files of every kind; tests of Python itself hold every syntax there is, and broken files."""
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    seen = 0
    for path in names[:: max(1, len(names) // 300)]:
        source = read_source(path, str(path))
        if isinstance(source, Failure):
            continue
        # Rules look only at files in which a word of theirs stands; with these all of them look at every file.
        words = (
            "# requires_grad optimizer backward BatchNorm load_state_dict DistributedDataParallel eval( train( step(\n"
        )
        text = f"{source.text}\n{words}"
        lint(Source(str(path), text))
        seen += 1
    assert seen > 100
