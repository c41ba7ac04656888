"""Which stream gets what, in which format, and in which encoding."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from frostline.baseline import KnownFinding
from frostline.cli.lint_documents import Outcome
from frostline.cli.lint_print import look_of, print_outcome, say
from frostline.cli.lint_sources import Sources


@pytest.fixture(autouse=True)
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lint_samples: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    Path("train.py").write_text(lint_samples.TRAIN)


def printed(outcome: Outcome, **how: Any) -> str:
    stream = io.StringIO()
    print_outcome(outcome, Sources(), stream, **{"output_format": "concise", "unsafe": False, **how})
    return stream.getvalue()


def ascii_stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="")


def test_concise_is_a_line_each_and_the_summary(lint_samples: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(Outcome(lint_samples.REPORT)).splitlines()
    assert [line.split(": ")[0] for line in lines[:3]] == ["train.py:2:5", "train.py:3:10", "train.py:6:1"]
    assert lines[3].startswith("Found 1 error, 1 warning, 1 note in 4 files")
    assert capsys.readouterr() == ("", "error: broken.py:3:7: invalid syntax\n")


def test_full_has_an_empty_line_behind_each(lint_samples: Any) -> None:
    assert printed(Outcome(lint_samples.REPORT), output_format="full").count("\n\n") == 3


@pytest.mark.parametrize("output_format", ["json", "sarif"])
def test_a_document_is_all_that_its_stream_gets(
    lint_samples: Any, output_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = Outcome(lint_samples.REPORT, known=(lint_samples.EVAL.finding,))
    document = json.loads(printed(outcome, output_format=output_format, written="known.json", count=True))
    assert "findings" in document or "runs" in document
    assert capsys.readouterr() == ("", "error: broken.py:3:7: invalid syntax\n")


def test_github_has_no_summary(lint_samples: Any) -> None:
    lines = printed(Outcome(lint_samples.REPORT), output_format="github").splitlines()
    assert len(lines) == 4
    assert all(line.startswith("::") for line in lines)


def test_counts_take_the_place_of_findings(lint_samples: Any) -> None:
    lines = printed(Outcome(lint_samples.REPORT), output_format="full", count=True).splitlines()
    assert lines[0].split() == ["count", "code", "mistake", "fixable"]
    assert len(lines) == 8


def test_a_baseline_is_told_of_in_numbers(lint_samples: Any) -> None:
    gone = (KnownFinding("0" * 12, "M203", count=2), KnownFinding("1" * 12, "M203"), KnownFinding("2" * 12, "F101"))
    known = (lint_samples.MISSPELT.finding, lint_samples.LISTED.finding)
    assert printed(Outcome(lint_samples.REPORT, known=known, gone=gone)).splitlines()[1:] == [
        "2 findings of the baseline not shown: F101, H601.",
        "4 of the baseline not found any more: M203, F101.",
        "Found 1 note in 4 files.",
    ]


def test_what_was_written_is_said_instead_of_the_findings(lint_samples: Any) -> None:
    every = tuple(each.finding for each in lint_samples.REPORT.diagnostics)
    assert printed(Outcome(lint_samples.REPORT, known=every), written="known.json") == (
        "3 findings in known.json as known.\n"
    )


def test_what_an_encoding_cannot_say_is_written_out() -> None:
    stream = ascii_stream()
    say(stream, ["naïve …", "plain"])
    stream.flush()
    assert stream.buffer.getvalue() == b"na\\xefve \\u2026\nplain\n"  # type: ignore[attr-defined]


def test_the_look_is_that_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (look_of(io.StringIO(), unsafe=True).more, look_of(ascii_stream(), unsafe=True).more) == ("…", "...")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    look = look_of(io.StringIO(), unsafe=True)
    assert (look.width, look.unsafe, look.paint.on) == (120, True, True)
