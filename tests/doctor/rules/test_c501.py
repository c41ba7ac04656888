"""C501: a load with strict=False that brings little."""

import copy

import pytest
import torch
from planted_loops import c501, marked_line
from torch import nn

import frostline as fl
from frostline.audit.events import Load
from frostline.audit.seen import Seen
from frostline.doctor import examine
from frostline.doctor.rules.c501 import look
from frostline.findings import Safety, Severity

TEXT = """\
C501 error: load_state_dict(strict=False) brought 0 of 9 tensors into model; 9 came
  seen: missing in what came: 8 keys: {{0,1,3}}.weight (x3), {{0,1,3}}.bias (x3), 1.running_mean, 1.running_var
        without a place in the model: 9 keys: module.{{0,1,3}}.weight (x3), module.{{0,1,3}}.bias (x3), \
module.1.running_mean, module.1.running_var, module.1.num_batches_tracked
        9 of them differ by the prefix 'module.' only
        the result of load_state_dict, which lists both, is not looked at
  at:   benchmarks/planted_loops/c501.py:{line}  model.load_state_dict(state, strict=False)  # <- C501
  fix:  state = {{key.removeprefix('module.'): value for key, value in state.items()}}; then load it strictly"""


def test_it_is_found_with_its_line():
    found = examine(c501.failing())
    assert found[0].code == "C501"
    assert [f.code for f in found].count("C501") == 1
    line = marked_line(c501.failing, "C501")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(c501.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "1 load_state_dict call brought 9 of 9 tensors" in found.sound


def load(**fields: object) -> Load:
    usual = {"at": 1, "step": 0, "model": "model", "path": "", "exact": False, "assign": False}
    return Load(**{**usual, **fields})


def test_a_line_that_loads_again_and_again_is_one_finding():
    state = c501.checkpoint()
    model = c501.make()
    with fl.watch(model) as seen:
        for _ in range(3):
            model.load_state_dict(state, strict=False)
            model(torch.randn(4, 4))
    assert [f.code for f in examine(seen)].count("C501") == 1


def test_a_result_that_is_kept_is_not_called_ignored_and_is_still_an_error():
    state = c501.checkpoint()
    model = c501.make()
    with fl.watch(model) as seen:
        result = model.load_state_dict(state, strict=False)
        model(torch.randn(4, 4))
    assert result.missing_keys
    found = examine(seen)[0]
    assert (found.code, found.severity) == ("C501", Severity.ERROR)
    assert "is not looked at" not in found.evidence


@pytest.mark.parametrize(
    "event",
    [
        load(given=2, wanted=9, missing=("a", "b", "c", "d", "e", "f", "g")),  # an adapter, all of which arrives
        load(given=100, wanted=250, missing=tuple(f"m{i}" for i in range(152)), unexpected=("fc.weight", "fc.bias")),
        load(given=300, wanted=9, unexpected=tuple(f"u{i}" for i in range(291))),  # all that the model wants came
        load(exact=True, given=9, wanted=9),
        load(given=9, wanted=9, missing=("a",), unexpected=tuple("bcdefghi"), error="RuntimeError: sizes differ"),
        load(given=0, wanted=0),
    ],
)
def test_partial_loads_on_purpose_are_silent(event: Load):
    assert list(look(Seen(events=[event]))) == []


def test_little_that_arrives_is_a_warning():
    event = load(given=10, wanted=10, missing=tuple("abcdefgh"), unexpected=tuple("qrstuvwx"))
    (found,) = look(Seen(events=[event]))
    assert found.severity is Severity.WARNING
    assert found.message.endswith("brought 2 of 10 tensors into model; 10 came")


def test_a_filter_that_left_nothing_is_said_to_have_matched_nothing():
    (found,) = look(Seen(events=[load(given=0, wanted=4, missing=tuple("abcd"))]))
    assert any("the dictionary that came was empty" in line for line in found.evidence)


def test_a_nested_checkpoint_names_its_entry():
    event = load(given=0, wanted=4, missing=tuple("abcd"), unexpected=("epoch", "state_dict"))
    (found,) = look(Seen(events=[event]))
    assert found.remedy == 'model.load_state_dict(checkpoint["state_dict"])'


def test_a_prefix_that_what_came_lacks_is_told():
    event = load(given=2, wanted=2, missing=("net.a", "net.b"), unexpected=("a", "b"))
    (found,) = look(Seen(events=[event]))
    assert found.remedy.startswith("state = {'net.' + key: value")


def test_a_first_attempt_that_a_better_one_follows_is_silent():
    state = c501.checkpoint()
    model = c501.make()
    with fl.watch(model) as seen:
        result = model.load_state_dict(state, strict=False)
        if result.missing_keys:
            model.load_state_dict({key.removeprefix("module."): value for key, value in copy.copy(state).items()})
        nn.functional.mse_loss(model(torch.randn(4, 4)), torch.zeros(4, 3)).backward()
    assert "C501" not in [f.code for f in examine(seen)]


def test_what_is_missing_without_the_prefix_too_is_named_and_the_fix_works_as_it_is_written():
    model = nn.Sequential()
    model.body, model.head = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2)
    state = {f"module.{key}": value for key, value in model.state_dict().items() if not key.startswith("head.")}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with fl.watch(model, optimizer) as seen:
        model.load_state_dict(state, strict=False)
        model(torch.randn(4, 2)).sum().backward()
        optimizer.step()
    (told,) = [found for found in examine(seen) if found.code == "C501"]
    assert "7 of them differ by the prefix 'module.' only" in told.evidence
    rename, _, then = told.remedy.partition("; then ")
    plan = then.removeprefix("frostline.").removesuffix(", which refuses anything else")
    assert plan == "plan_load(model, state, keep='head').apply()"
    names = {"state": state, "model": model, "plan_load": fl.plan_load}
    exec(f"{rename}\n{plan}", names)
