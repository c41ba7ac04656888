"""IPython's own syntax becomes Python of the same length."""

from __future__ import annotations

import ast
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.lint.magics import without_magics


@pytest.mark.parametrize(
    ("cell", "python"),
    [
        ("%matplotlib inline\nx", "                  \nx"),
        ("!pip install -q \\\n  timm\nx", "                 \n      \nx"),
        ("if a:\n    !ls\n    %cd b\nelse:\n\t!!ls", "if a:\n    0  \n    pass \nelse:\n\tpass"),
        ("files = !ls *.pt\nn = %env  HOME", "files = None    \nn = None      "),
        ("out = !l", "out = 0 "),
        ('d["k = 1"] = %time f()\nd[0].a, *b = !x', 'd["k = 1"] = None     \nd[0].a, *b = 0 '),
        ("model?\nnn.Linear??  \n?model\n??m", "      \n             \n      \n   "),
        ("for x in y:\n  x?", "for x in y:\n  0 "),
        ("x = (a\n%b)\ny = [\n!a]\n%c", "x = (a\n%b)\ny = [\n!a]\n  "),
        ('s = """\n%a\n!b\n"""\n%c', 's = """\n%a\n!b\n"""\n  '),
        ('s = r\'\\\'; t = "\\"?"\n%c', 's = r\'\\\'; t = "\\"?"\n  '),
        (
            "x = a \\\n  % b\nprint('a=%d' % 3, x != 1)  # why?\n",
            "x = a \\\n  % b\nprint('a=%d' % 3, x != 1)  # why?\n",
        ),
        ("x %= 3\ny = 5 %3\nz = '?'", "x %= 3\ny = 5 %3\nz = '?'"),
        ("/f x\n,f a\n;f a", "    \n    \n    "),
        ("  %a\n  !b", "    \n    "),
        ("a\r\n%b\r\nc", "a\r\n  \r\nc"),
    ],
)
def test_lines(cell: str, python: str) -> None:
    assert without_magics(cell)[0] == python


@pytest.mark.parametrize(
    ("cell", "python", "masked"),
    [
        ("%%time\nmodel = f()", "      \nmodel = f()", [(-1, 6)]),
        ("\n%%capture out\n%%time\n!ls\nx", "\n             \n      \n   \nx", [(-1, 21), (22, 25)]),
        ("%%bash\nls -l", "      \n     ", [(-1, 12)]),
        ("%%time\n%%html\n<b>", "      \n      \n   ", [(-1, 17)]),
        ("%%\nx", "  \n ", [(-1, 4)]),
        ("x\n%%time\ny", "x\n      \ny", [(2, 8)]),
    ],
)
def test_instructions_for_the_whole_cell(cell: str, python: str, masked: list[tuple[int, int]]) -> None:
    assert without_magics(cell) == (python, masked)


LINES = st.sampled_from(
    [
        "x = 1",
        "%time",
        "  !ls -l \\",
        "x = !ls",
        "x?",
        "f(",
        ")",
        '"""',
        "'a",
        "# %?",
        "",
        "%%bash",
        "\t%a",
        "a \\",
        "é = %b",
    ]
)


@given(st.lists(LINES, max_size=8), st.sampled_from(["\n", "\r\n", "\r"]))
def test_only_what_is_masked_changes_and_never_the_length(lines: list[str], end: str) -> None:
    cell = end.join(lines)
    python, masked = without_magics(cell)
    assert len(python) == len(cell)
    assert re.findall(r"[\r\n]+", python) == re.findall(r"[\r\n]+", cell)
    same = [one == other for one, other in zip(python, cell, strict=True)]
    assert all(same[at] or any(a <= at < b for a, b in masked) for at in range(len(cell)))


@pytest.mark.parametrize(
    "lines", [["x = 1", "y = x % 2 != 0", "s = 'a?'"], ["def f(x):", "  return (x", "  %x)", "", "f(1)"]]
)
def test_python_is_left_as_it_is(lines: list[str]) -> None:
    cell = "\n".join(lines)
    ast.parse(cell)
    assert without_magics(cell) == (cell, [])
