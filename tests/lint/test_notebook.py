"""The cells of a notebook as one text, and edits on their way back into its JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.lint.diagnostic import Edit, Failure
from frostline.lint.source import Source, source_from_bytes


def code(source: str | list[str], **metadata: Any) -> dict[str, Any]:
    return {"cell_type": "code", "execution_count": None, "metadata": metadata, "outputs": [], "source": source}


def text_cell(source: str | list[str]) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def notebook(*cells: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def read(data: bytes | dict[str, Any]) -> Source:
    raw = data if isinstance(data, bytes) else json.dumps(data, indent=1).encode()
    source = source_from_bytes(raw, "a.ipynb")
    assert isinstance(source, Source), source
    return source


def replace(source: Source, old: str, new: str) -> Source:
    at = source.text.index(old)
    return source.apply([Edit(at, at + len(old), new)])


def test_code_cells_are_one_text_and_all_cells_are_counted() -> None:
    source = read(
        notebook(text_cell("# A"), code(["import torch\n", "x = 1"]), text_cell("b"), code(""), code("y\n"), code("z"))
    )
    assert source.is_notebook
    assert source.text == "import torch\nx = 1\n\ny\n\nz"
    assert [source.cell_of(line) for line in range(1, 7)] == [(2, 1), (2, 2), (4, 1), (5, 1), (5, 2), (6, 1)]


def test_magics_are_replaced_for_the_parser_and_kept_for_the_reader() -> None:
    source = read(notebook(code("%matplotlib inline\nx = 1"), code("%%bash\nls")))
    assert source.text == "                  \nx = 1\n      \n  "
    assert [source.line_text(line) for line in (1, 4)] == ["%matplotlib inline", "ls"]
    saved = json.loads(replace(source, "x = 1", "y = 2").to_bytes())
    assert [cell["source"] for cell in saved["cells"]] == ["%matplotlib inline\ny = 2", "%%bash\nls"]


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({}, "x"),
        ({"language_info": {"name": "python"}}, "x"),
        ({"kernelspec": {"language": "python"}}, "x"),
        ({"kernelspec": {"language": "python"}, "language_info": {"name": "ipython"}}, "x"),
        ({"language_info": {"name": "julia"}}, ""),
        ({"kernelspec": {"language": "R"}}, ""),
        ({"kernelspec": 3, "language_info": None}, "x"),
    ],
)
def test_notebooks_of_another_language_are_empty(metadata: dict[str, Any], text: str) -> None:
    source = read(notebook(code("x"), **metadata))
    assert source.text == text
    assert source.to_bytes() == json.dumps(notebook(code("x"), **metadata), indent=1).encode()


def test_a_cell_of_another_language_is_skipped() -> None:
    assert read(notebook(code("select", vscode={"languageId": "sql"}), code("x"))).text == "x"


STYLES = st.sampled_from(
    [
        {"indent": 1},
        {"indent": 2, "ensure_ascii": False},
        {"indent": "\t"},
        {},
        {"separators": (",", ":"), "ensure_ascii": False},
    ]
)
LINES = st.lists(st.sampled_from(["x = 1\n", "é🥶 = 2\n", "%time\n", "\u2028", "'\\n\t\"'\n", "\r\n", "y"]), max_size=5)


@given(st.lists(st.tuples(st.booleans(), LINES), max_size=4), STYLES, st.sampled_from(["", "\n"]), st.booleans())
def test_bytes_come_back_and_an_edit_changes_one_cell(
    cells: list[tuple[bool, list[str]]], style: dict[str, Any], tail: str, bom: bool
) -> None:
    content = notebook(*(code(lines if as_list else "".join(lines)) for as_list, lines in cells), text_cell("é"))
    data = (b"\xef\xbb\xbf" if bom else b"") + (json.dumps(content, **style) + tail).encode()
    source = read(data)
    assert source.to_bytes() == data
    for number, (as_list, lines) in enumerate(cells):
        at = source.text.find("x = 1") if lines[:1] == ["x = 1\n"] else -1
        if at < 0 or source.cell_of(source.position(at)[0])[0] != number + 1:
            continue
        after = replace(source, "x = 1", "π = 3\nx = 2").to_bytes()
        new = "".join(["π = 3\n", "x = 2\n", *lines[1:]])
        content["cells"][number]["source"] = (
            [part + "\n" for part in new.split("\n")[:-1]] + [new.split("\n")[-1]] if as_list else new
        )
        if as_list and not content["cells"][number]["source"][-1]:
            del content["cells"][number]["source"][-1]
        got = json.loads(after.decode("utf-8-sig"))
        assert got == content
        escaped = style.get("ensure_ascii", True) and b"\\u" in data
        if escaped or not style.get("ensure_ascii", True):
            expected = (json.dumps(content, **style) + tail).encode()
            if not as_list or len(lines) > 1 or "indent" in style:
                assert after.removeprefix(b"\xef\xbb\xbf") == expected
        break


def test_the_escapes_of_untouched_lines_stay() -> None:
    raw = rb'{"nbformat": 4, "cells": [{"cell_type": "code", "source": ["a = \"\u00e9\/\"\n" , "b"]}]} '
    assert replace(read(raw), "b", "c = 'é'").to_bytes() == raw.replace(b'"b"', rb'"c = ' + rb"'\u00e9'" + b'"')


def test_a_text_with_half_a_surrogate_pair_can_be_written() -> None:
    raw = '{"nbformat": 4, "cells": [{"cell_type": "code", "source": "a = \'\\ud83d\' # é"}]}'.encode()
    assert b"b = '\\ud83d' # \\u00e9" in replace(read(raw), "a", "b").to_bytes()


def test_the_last_line_of_a_cell_may_go_with_its_end() -> None:
    source = read(notebook(code("a\nb"), code("c")))
    assert [cell["source"] for cell in json.loads(source.apply([Edit(2, 4, "")]).to_bytes())["cells"]] == ["a\n", "c"]
    below = source.apply([source.line_below(2, "B"), source.line_above(3, "C")])
    assert [cell["source"] for cell in json.loads(below.to_bytes())["cells"]] == ["a\nb\nB", "C\nc"]


def test_a_cell_may_be_emptied() -> None:
    source = read(notebook(code(["a"]), code("b")))
    assert [
        cell["source"] for cell in json.loads(source.apply([Edit(0, 1, ""), Edit(2, 3, "")]).to_bytes())["cells"]
    ] == [[], ""]


@pytest.mark.parametrize(
    ("start", "end", "accepted"),
    [
        (0, 0, False),  # before %%time
        (7, 7, True),
        (7, 8, True),
        (7, 11, False),  # over two cells
        (9, 9, True),  # before !ls, a line of its own
        (9, 10, False),
        (10, 10, False),
        (12, 12, True),
        (99, 99, False),
    ],
)
def test_edits_stay_in_their_cell_and_clear_of_magics(start: int, end: int, accepted: bool) -> None:
    source = read(notebook(code("%%time\na"), code("!ls\nb")))
    assert source.text == "      \na\n   \nb"
    assert source.accepts(Edit(start, end, "x")) is accepted
    if not accepted:
        with pytest.raises(ValueError, match="outside of what can be edited"):
            source.apply([Edit(start, end, "x")])


def test_nothing_can_be_put_into_a_notebook_without_code() -> None:
    source = read(notebook(text_cell("a")))
    assert (source.text, source.accepts(Edit(0, 0, "x")), source.cell_of(1)) == ("", False, (0, 1))


@pytest.mark.parametrize(
    ("raw", "message", "line"),
    [
        (b"", "not JSON: Expecting value", 1),
        (b'{"cells": [\n{"source": }]}', "not JSON: Expecting value", 2),
        (b'{"cells": []\n"nbformat": 4}', "not JSON: Expecting '}' delimiter", 2),
        (b'{"cells": [\n\n1 2]}', "not JSON: Expecting ']' delimiter", 3),
        (b'{"cells": [],\n}', "not JSON: Expecting property name enclosed in double quotes", 2),
        (b'{"nbformat": 4, "cells": []}\n}', "not JSON: Extra data", 2),
        (b"[1]", "not a notebook: it has no list of cells", 1),
        (b'{"cells": {}, "nbformat": 4}', "not a notebook: it has no list of cells", 1),
        (b'{"cells": [], "nbformat": 3}', "a notebook of format 3, only 4 can be read", 1),
        (
            b'{"nbformat": 4,\n"cells": [{"cell_type":"code","source": [1]}]}',
            "not a notebook: the source of cell 1 is no text",
            2,
        ),
        (b"[" * 100_000, "not a notebook: nested too deeply", 1),
        (b"\n\xff", "not UTF-8", 2),
    ],
)
def test_what_is_no_notebook_is_named_with_its_line(raw: bytes, message: str, line: int) -> None:
    failure = source_from_bytes(raw, "a.ipynb")
    assert isinstance(failure, Failure)
    assert (failure.message, failure.line) == (message, line)


def test_cells_without_code_are_no_matter() -> None:
    odd = notebook(code("x"), {"cell_type": "code"}, {"cell_type": "raw", "source": "r"})
    odd["cells"] += [3, None, []]
    assert read(odd).text == "x"
