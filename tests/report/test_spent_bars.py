"""Bars and table say the same seconds, and the shares of a bar fill it."""

from __future__ import annotations

import pytest

from frostline.report.figures import duration
from frostline.report.spent_bars import MEANINGS, SpentBar, draw_spent, share_of, spent_line, sum_spent

FIRST = SpentBar("parity", "first epoch", {"head": 1.0, "prefix": 90.0, "loading": 5.0, "saving": 4.0}, epochs=1)
LATER = SpentBar("parity", "epochs 2 to 5", {"loading": 1.0, "prefix": 0.0, "head": 2.0, "saving": 1.0}, epochs=4)


def number(percent: str) -> float:
    return float(percent.removesuffix("%"))


def test_stretches_fill_the_bar_without_a_gap_in_the_order_of_the_table():
    drawn = draw_spent([FIRST, LATER])
    first, later = drawn.bars
    assert [(each.left, each.width) for each in first.stretches] == [
        ("0.00%", "5.00%"),
        ("5.00%", "90.00%"),
        ("95.00%", "1.00%"),
        ("96.00%", "4.00%"),
    ]
    colors = {line.name: line.color for line in drawn.lines}
    assert [each.color for each in first.stretches] == [colors[n] for n in ("loading", "prefix", "head", "saving")]
    assert len(set(colors.values())) == 4
    # What took no time has no width, and the others take the same colors as above.
    assert [each.color for each in later.stretches] == [colors[n] for n in ("loading", "head", "saving")]
    for bar in drawn.bars:
        assert sum(number(each.width) for each in bar.stretches) == pytest.approx(100, abs=0.02)


def test_a_bar_says_its_seconds_and_shares_in_words():
    first, later = draw_spent([FIRST, LATER]).bars
    assert (first.long, first.each) == ("100 s", "")
    assert first.text == "loading 5 %, prefix 90 %, head 1 %, saving 4 %"
    assert (later.long, later.each) == ("4.00 s", "1.00 s an epoch")
    assert later.text == "loading 25 %, prefix 0 %, head 50 %, saving 25 %"


def test_the_table_adds_the_bars_up():
    outside = SpentBar("outside", "", {"proof": 6.0, "saving": 0.0})
    drawn = draw_spent([FIRST, LATER, outside])
    assert drawn.whole == "110 s"
    assert [(line.name, line.seconds, line.share) for line in drawn.lines] == [
        ("loading", "6.00 s", "5 %"),
        ("prefix", "90.0 s", "82 %"),
        ("head", "3.00 s", "3 %"),
        ("saving", "5.00 s", "5 %"),
        ("proof", "6.00 s", "5 %"),
    ]
    assert drawn.lines[1].of_bars == ("90.0 s", "0 s", "")
    assert drawn.lines[4].of_bars == ("", "", "6.00 s")
    assert all(line.meaning == MEANINGS[line.name] for line in drawn.lines)


def test_names_that_the_page_does_not_know_have_colors_of_their_own():
    spent = {"mixing": 1.0, "other": 1.0, "head": 1.0, "sorting": 1.0}
    drawn = draw_spent([SpentBar("a", "", spent)])
    assert [line.name for line in drawn.lines] == ["head", "mixing", "sorting", "other"]
    assert len({line.color for line in drawn.lines}) == 4
    assert [line.meaning == "" for line in drawn.lines] == [False, True, True, False]
    many = draw_spent([SpentBar("a", "", {f"part {place}": 1.0 for place in range(9)})])
    assert len(many.lines) == 9
    # Beside a known name that has one of them, the other is taken.
    (_, free) = draw_spent([SpentBar("a", "", {"preparing": 1.0, "mixing": 1.0})]).lines
    assert free.color == "var(--phase-6)"


def test_so_little_that_was_not_told_apart_is_not_mentioned():
    assert spent_line({"head": 10.0, "other": 0.04}) == "head >99 % of 10.0 s"
    assert spent_line({"head": 10.0, "other": 0.1}) == "head 99 %, other 1 % of 10.1 s"
    assert [line.name for line in draw_spent([SpentBar("a", "", {"head": 10.0, "other": 0.04})]).lines] == ["head"]


def test_nothing_spent_is_no_bar():
    drawn = draw_spent([SpentBar("parity", "first epoch", {}), SpentBar("parity", "later", {"head": 0.0})])
    assert (drawn.bars, drawn.lines, drawn.whole) == ((), (), "0 s")
    assert spent_line({}) == "not measured"


def test_accounts_are_left_as_they_are():
    accounts = [{"head": 1.0}, {"head": 2.0, "loading": 1.0}]
    assert sum_spent(accounts) == {"loading": 1.0, "head": 3.0}
    assert accounts == [{"head": 1.0}, {"head": 2.0, "loading": 1.0}]


@pytest.mark.parametrize(
    ("seconds", "total", "said"),
    [
        (0.0, 1.0, "0 %"),
        (0.0001, 1.0, "<1 %"),
        (0.005, 1.0, "<1 %"),
        (0.006, 1.0, "1 %"),
        (0.5, 1.0, "50 %"),
        (0.9951, 1.0, ">99 %"),
        (1.0, 1.0, "100 %"),
        (0.0, 0.0, "0 %"),
    ],
)
def test_only_nothing_is_zero_and_only_everything_is_a_hundred(seconds: float, total: float, said: str):
    assert share_of(seconds, total) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0 s"),
        (0.0009, "<0.001 s"),
        (0.001, "0.00100 s"),
        (9.999, "10.0 s"),
        (99.96, "100 s"),
        (119.4, "119 s"),
        (119.6, "2 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (360000.0, "100 h 00 min"),
    ],
)
def test_durations_do_not_jump_where_their_units_change(seconds: float, said: str):
    assert duration(seconds) == said
