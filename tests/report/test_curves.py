from __future__ import annotations

import math
import re
import sys
import xml.etree.ElementTree as ET

import pytest

from frostline.errors import MissingExtra
from frostline.report.curves import PHASE_STYLES, Curve, draw_charts

BASE = Curve("loss", "base", (1.0, 2.0, 3.0), (2.0, 1.0, 0.5))
HEAD = Curve("loss", "head", (4.0, 5.0), (0.4, 0.3))
DIGIT = Curve("accuracy of digit", "head", (4.0, 5.0), (0.5, 0.98056))


def test_one_chart_for_each_quantity_with_its_phases() -> None:
    charts = draw_charts([BASE, DIGIT, HEAD])
    assert [chart.title for chart in charts] == ["loss", "accuracy of digit"]
    assert [series.phase for series in charts[0].series] == ["base", "head"]
    assert charts[0].columns == ("base", "head")
    assert charts[0].rows[0] == ("1", "2", "–")
    assert charts[0].rows[-1] == ("5", "–", "0.3")


def test_shares_print_as_percent_and_the_rest_does_not() -> None:
    loss, accuracy = draw_charts([BASE, DIGIT])
    assert accuracy.series[0].last == "98.06%"
    assert loss.series[0].last == "0.5"
    (recall,) = draw_charts([Curve("recall", "a", (1.0,), (0.25,), "%")])
    assert recall.series[0].last == "25.00%"
    (seconds,) = draw_charts([Curve("time", "a", (1.0,), (2.5,), "s")])
    assert seconds.series[0].last == "2.5 s"
    (f1,) = draw_charts([Curve("f1 of digit", "a", (1.0,), (0.25,))], metric="f1")
    assert f1.series[0].last == "25.00%"


def test_a_phase_looks_the_same_everywhere_and_unlike_the_others_without_color() -> None:
    loss, accuracy = draw_charts([BASE, HEAD, DIGIT])
    assert accuracy.series[0].style == loss.series[1].style == 1
    assert "var(--phase-2)" in accuracy.svg
    assert "var(--phase-1)" not in accuracy.svg
    assert "stroke-dasharray" in accuracy.svg
    assert len({style.dash for style in PHASE_STYLES}) == len({style.marker for style in PHASE_STYLES}) == 6


def test_more_phases_than_styles_go_round() -> None:
    (chart,) = draw_charts([Curve("loss", f"phase {i}", (float(i),), (1.0,)) for i in range(8)])
    assert [series.style for series in chart.series] == [0, 1, 2, 3, 4, 5, 0, 1]


def test_the_picture_is_fit_for_a_page() -> None:
    for chart in draw_charts([BASE, HEAD, DIGIT]):
        ET.fromstring(chart.svg)
        assert "http" not in chart.svg
        assert "<style" not in chart.svg
        assert "#0101" not in chart.svg
        assert "#0102" not in chart.svg
        assert "currentColor" in chart.svg
        assert "var(--rule)" in chart.svg


def test_element_ids_of_several_charts_do_not_clash() -> None:
    ids = [name for chart in draw_charts([BASE, HEAD, DIGIT]) for name in re.findall(r' id="([^"]*)"', chart.svg)]
    assert ids
    assert len(ids) == len(set(ids))


def test_what_is_referred_to_exists() -> None:
    for chart in draw_charts([BASE, HEAD, DIGIT]):
        ids = set(re.findall(r' id="([^"]*)"', chart.svg))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', chart.svg)) <= ids


def test_the_same_curves_give_the_same_bytes() -> None:
    assert draw_charts([BASE, DIGIT]) == draw_charts([BASE, DIGIT])


def test_names_are_never_drawn() -> None:
    hostile = "</svg><script>#010101 $\\alpha$"
    (chart,) = draw_charts([Curve(hostile, hostile, (1.0,), (1.0,), hostile)])
    assert "script" not in chart.svg
    assert "alpha" not in chart.svg
    assert chart.title == hostile


@pytest.mark.parametrize(
    "values",
    [(math.nan, 1.0, 2.0), (1.0, math.inf, 2.0), (1e-300, 1e300, 1.0), (5.0, 5.0, 5.0), (0.0, 0.0, 0.0), (-1, -2, -3)],
)
def test_odd_values_are_drawn(values: tuple[float, ...]) -> None:
    (chart,) = draw_charts([Curve("loss", "base", (1.0, 2.0, 3.0), values)])
    ET.fromstring(chart.svg)
    assert len(chart.rows) == 3


def test_gaps_are_said() -> None:
    (chart,) = draw_charts([Curve("loss", "base", (1.0, 2.0), (1.0, math.nan))])
    assert [row[1] for row in chart.rows] == ["1", "NaN"]
    assert chart.text == "loss over epochs. base: 1 at epoch 1, 1 at epoch 1."


def test_curves_without_values_are_left_out() -> None:
    assert draw_charts([Curve("loss", "base", (), ()), Curve("loss", "head", (1.0,), (math.nan,))]) == ()


def test_a_thousand_epochs_keep_their_dashes() -> None:
    epochs = tuple(float(i) for i in range(1000))
    (chart,) = draw_charts([Curve("loss", "base", epochs, tuple(1 / (1 + e) for e in epochs))])
    assert chart.svg.count("<use") < 60


def test_epochs_and_values_must_fit() -> None:
    with pytest.raises(ValueError, match=r"curve 'loss' of phase 'base' does not fit itself\n  epochs: 2\n  values: 1"):
        draw_charts([Curve("loss", "base", (1.0, 2.0), (1.0,))])


def test_settings_of_matplotlib_stay_and_do_not_matter() -> None:
    import matplotlib

    plain = draw_charts([BASE])
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert draw_charts([BASE]) == plain
        assert dict(matplotlib.rcParams) == before


def test_a_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw_charts([]) == ()
    with pytest.raises(MissingExtra, match=r"needs the package 'matplotlib'.*\n.*'frostline\[report\]'"):
        draw_charts([BASE])
