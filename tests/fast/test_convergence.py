"""The rule, on figures: what rests is steady, and what only looks like rest is not."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from frostline.fast.convergence import ConvergenceReport, ConvergenceRow, History, Move, Rule, restored, saved

RULE = Rule(tolerance=0.2, rest=1e-3, growth=0.25, patience=2)


def verdicts(*windows, bar=0.01, usual=1.0):
    history = History()
    said = []
    for window in windows:
        history.see(*window)
        history.judge(RULE, bar, usual)
        said.append(history.verdict)
    return said, history


def test_rest_is_steady_from_the_second_window_on():
    said, history = verdicts((1.0, 0.01, 0.1), (1.0, 0.01, 0.1), (0.5, 0.001, 0.1))
    assert said == ["first window", "steady", "steady"]
    assert history.steady == 2


def test_a_gradient_that_fades_is_steady_which_its_relative_change_would_deny():
    windows = [(0.5**number, 0.001 * 0.5**number, 0.1) for number in range(5)]
    assert verdicts(*windows)[0][1:] == ["steady"] * 4
    changes = [abs(after - before) / before for (before, *_), (after, *_) in itertools.pairwise(windows)]
    assert changes == [0.5] * 4


def test_constant_speed_moves_which_a_constant_gradient_would_deny():
    windows = [(1.0, 0.05, 0.1)] * 4
    assert verdicts(*windows)[0][1:] == ["moves"] * 3
    assert {abs(after - before) / before for (before, *_), (after, *_) in itertools.pairwise(windows)} == {0}


def test_a_tiny_gradient_that_moves_tiny_weights_moves():
    assert verdicts(*[(1e-9, 0.3, 0.1)] * 3)[0][1:] == ["moves"] * 2


def test_a_gradient_that_grows_more_than_usual_wakes():
    assert verdicts((1.0, 0.001, 0.1), (1.3, 0.001, 0.1))[0][1] == "its gradient grows"
    # All layers met harder samples.
    assert verdicts((1.0, 0.001, 0.1), (1.3, 0.001, 0.1), usual=1.3)[0][1] == "steady"


@pytest.mark.parametrize(
    ("window", "said"),
    [
        ((None, 0.0, 0.1), "no gradient"),
        ((math.nan, 0.0, 0.1), "not finite"),
        ((1.0, math.nan, 0.1), "not finite"),
        ((1.0, math.inf, 0.1), "not finite"),
        ((1.0, 0.0, 0.0), "its rate is 0"),
        ((1.0, 0.0, 0.2), "its rate rises"),
    ],
)
def test_what_only_looks_like_rest(window, said):
    found, history = verdicts((1.0, 0.0, 0.1), (1.0, 0.0, 0.1), window)
    assert (found[1:], history.steady) == (["steady", said], 0)


def test_after_a_window_that_was_not_finite_everything_begins_anew():
    assert verdicts((1.0, 0.0, 0.1), (math.nan, 0.0, 0.1), (1.0, 0.0, 0.1), (1.0, 0.0, 0.1))[0][2:] == [
        "first window",
        "steady",
    ]


def test_a_gradient_of_zero_is_at_rest_and_one_that_comes_back_grows():
    assert verdicts((0.0, 0.0, 0.1), (0.0, 0.0, 0.1), (1e-9, 0.0, 0.1))[0][1:] == ["steady", "its gradient grows"]


def test_the_bar_is_not_raised_by_one_layer_that_goes_far():
    calm = [History(peak=0.05), History(peak=0.04)]
    assert RULE.bar([*calm, History(peak=3.0)]) == RULE.bar([*calm, History(peak=0.06)])
    assert RULE.bar([]) == RULE.bar([History()]) == RULE.rest
    assert RULE.bar([History(peak=0.002)]) == RULE.rest


def test_the_peak_is_the_largest_finite_update():
    assert verdicts((1.0, 0.3, 0.1), (1.0, 0.1, 0.1), (1.0, math.inf, 0.1))[1].peak == 0.3


def test_a_single_layer_has_no_usual_growth():
    assert RULE.usual_growth([History(growth=7.0)]) == 1
    assert RULE.usual_growth([History(growth=7.0), History(growth=math.inf), History(growth=0.0), History()]) == 1
    assert RULE.usual_growth([History(growth=7.0), History(growth=3.0)]) == 3


def test_a_history_goes_through_json():
    _, history = verdicts((1.0, 0.3, 0.1), (1.0, math.inf, 0.1))
    back = restored(json.loads(json.dumps(saved(history), allow_nan=False)))
    assert back.update is None
    assert (back.peak, back.steady, back.verdict, back.rate) == (0.3, 0, "not finite", 0.1)


def report(**changes):
    rows = (ConvergenceRow("stem", 0, 0.5, 0.001, 2, "steady"), ConvergenceRow("b\x1b", 1, None, math.inf, 0, "moves"))
    return ConvergenceReport(
        **{
            "rows": rows,
            "proposal": "stem",
            "frozen": 0,
            "windows": 3,
            "steps": 30,
            "bar": 0.01,
            "rate_dropped": False,
            **changes,
        }
    )


def test_a_report_prints_itself_and_is_json():
    text = str(report())
    assert "3 windows, 30 steps; at rest up to an update of 0.01" in text
    assert text.endswith("everything up to stem has converged; freeze() freezes it")
    assert "\x1b" not in text
    assert "<table>" in report()._repr_html_()
    told = json.loads(json.dumps(report(move=Move(0, 1, ("stem",), ("stem",), "converged")).to_json(), allow_nan=False))
    assert (told["schema_version"], told["rows"][1]["update"], told["move"]["after"]) == (1, "inf", 1)


def test_a_report_says_what_follows():
    assert report(proposal=None).verdict() == "no more can be frozen yet"
    assert report(rate_dropped=True).verdict().startswith("the rate has dropped")
    assert report(move=Move(2, 0, (), (), "taken back")).verdict() == (
        "nothing is frozen any more (2 layers before): taken back"
    )
