from __future__ import annotations

import math
import re

from frostline.report import HeadOutcome, MovedEntry, Outcome
from frostline.report.outcome import by_role, compare
from frostline.report.trace import HEIGHT, WIDTH, draw_traces


def moved(path: str, size: float | None, role: str = "norm.mean") -> MovedEntry:
    return MovedEntry(path, "buffer", role, size, size)


def test_heads_are_matched_by_name_and_missing_ones_are_dashes() -> None:
    digit = HeadOutcome("digit", False, True, 0.0, 0.9, 0.9, 0)
    parity = HeadOutcome("parity", True, False, 2.0, 0.5, 0.9, 7)
    blocks = compare([Outcome("a", 2, (), (digit, parity)), Outcome("b", 2, (), (parity,))], metric="accuracy")
    assert [(block.title, block.tag) for block in blocks[1:]] == [("digit", "held"), ("parity", "trained")]
    assert [cell.text for cell in blocks[1].rows[0].cells] == ["90.00%", "–"]


def test_what_was_not_measured_has_no_row() -> None:
    head = HeadOutcome("digit", False, None, None, None, 0.9)
    blocks = compare([Outcome("a", 2, (), (head,))], metric="accuracy")
    assert [row.label for row in blocks[1].rows] == ["Accuracy after"]


def test_a_change_is_bad_only_for_a_held_head() -> None:
    def tones(trained: bool) -> dict[str, str]:
        head = HeadOutcome("digit", trained, False, 2.0, 0.5, 0.500001, 7)
        return {row.label: row.cells[0].tone for row in compare([Outcome("a", 1, (), (head,))], metric="f1")[1].rows}

    assert set(tones(True).values()) == {""}
    assert [label for label, tone in tones(False).items() if tone] == [
        "Change, in points",
        "Logits equal to the bit",
        "Predictions changed",
    ]


def test_a_head_whose_trunk_trained_may_change() -> None:
    head = HeadOutcome("old", False, False, 2.0, 0.5, 0.4, 7, may_change=True)
    (_, block) = compare([Outcome("a", 1, (), (head,))], metric="f1")
    assert {cell.tone for row in block.rows for cell in row.cells} == {""}
    assert block.tag == "its own weights held"


def test_roles_are_counted_with_the_largest_change() -> None:
    rows = by_role([moved("a", 0.5), moved("b", 2.0), moved("c", None, "mode")])
    assert [(row.role, row.entries, row.max_abs) for row in rows] == [("norm.mean", 2, 2.0), ("mode", 1, None)]


def test_a_still_run_is_a_flat_line() -> None:
    (trace,) = draw_traces(["a", "b"], [Outcome("held", 2, (), ())])
    assert trace.line == f"M0 24H{WIDTH}"
    assert trace.text == "held: a flat line, none of 2 entries moved."


def test_a_moved_entry_deflects_at_its_place_and_by_its_size() -> None:
    run = Outcome("naive", 4, (moved("d", 100.0), moved("b", 0.01)), ())
    (trace,) = draw_traces(["a", "b", "c", "d"], [run])
    peaks = [(float(x), float(y)) for x, y in re.findall(r"L([\d.]+) ([\d.]+)", trace.line)][0::3]
    assert [250 <= peaks[0][0] <= 500, 750 <= peaks[1][0] <= 1000] == [True, True]
    assert HEIGHT / 2 > peaks[0][1] > peaks[1][1] == 2.0
    assert trace.text == "naive: 2 of 4 entries moved, d most, by 100."


def test_every_size_stays_within_the_frame() -> None:
    sizes = [None, 0.0, math.nan, math.inf, 1e-300, 1e300]
    (trace,) = draw_traces([], [Outcome("naive", 9, tuple(moved(str(i), s) for i, s in enumerate(sizes)), ())])
    points = [(float(x), float(y)) for x, y in re.findall(r"L([\d.]+) ([\d.]+)", trace.line)]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert len(points) == 3 * len(sizes)
