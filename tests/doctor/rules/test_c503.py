"""C503: a best state without a copy."""

import copy
import io

import pytest
import torch
from planted_loops import c503, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
C503 error: the state of model that was kept moved along for 3 optimizer steps: loading it back did nothing
  seen: alive during 3 optimizer steps after it was taken
        state_dict() gives the model's own tensors, not copies: each step changes them too
        loaded back by model.load_state_dict(best_state) at benchmarks/planted_loops/c503.py:{at_plus_1}: no tensor \
changed
  at:   benchmarks/planted_loops/c503.py:{line}  best, best_state = accuracy, model.state_dict()  # <- C503
  fix:  copy.deepcopy(model.state_dict())"""


def test_it_is_found_with_its_line():
    found = examine(c503.failing())
    assert found[0].code == "C503"
    assert [f.code for f in found].count("C503") == 1
    line = marked_line(c503.failing, "C503")
    assert str(found[0]) == TEXT.format(line=line, at_plus_1=line + 1)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(c503.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "1 state loaded during training shared no memory with the model" in found.sound


def test_a_snapshot_by_name_that_moved_along_is_a_warning_even_if_it_is_not_loaded_back():
    model, optimizer = c503.make()
    with fl.watch(model, optimizer) as seen:
        weights_before = model.state_dict()
        c503.train(model, optimizer)
    assert weights_before
    (told,) = [f for f in examine(seen) if f.code == "C503"]
    assert (told.severity, told.message) == (
        Severity.WARNING,
        "the state of model that was kept as a snapshot moved along for 1 optimizer step",
    )


def test_a_live_view_under_another_name_is_silent_before_training_and_information_during_it():
    model, optimizer = c503.make()
    with fl.watch(model, optimizer) as seen:
        view = model.state_dict()
        c503.train(model, optimizer)
        state = model.state_dict()
        c503.train(model, optimizer)
    assert view.keys() == state.keys()
    told = [f for f in examine(seen) if f.code == "C503"]
    assert [f.severity for f in told] == [Severity.INFO]


def test_what_is_saved_at_once_is_silent():
    model, optimizer = c503.make()
    with fl.watch(model, optimizer) as seen:
        for _ in range(3):
            c503.train(model, optimizer)
            best = {"model": model.state_dict()}
            torch.save(best, io.BytesIO())
    assert best
    assert "C503" not in [f.code for f in examine(seen)]


def test_it_is_found_where_the_dictionary_is_gone_when_the_watch_ends():
    def fit(model, optimizer):
        best_state = model.state_dict()
        c503.train(model, optimizer)
        model.load_state_dict(best_state)

    model, optimizer = c503.make()
    with fl.watch(model, optimizer) as seen:
        fit(model, optimizer)
    assert [f.code for f in examine(seen) if f.severity is not Severity.INFO] == ["C503"]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_best_state_that_is_the_last_one_was_loaded_back_by_luck(compiled):
    model, optimizer = c503.make()
    used = torch.compile(model, backend="eager") if compiled else None
    with fl.watch(model, optimizer) as seen:
        c503.train(used or model, optimizer)
        state = (used or model).state_dict()
        (used or model).load_state_dict(state)
    (told,) = [f for f in examine(seen) if f.code in {"C502", "C503"}]
    assert (told.code, told.severity) == ("C503", Severity.WARNING)
    assert told.message.startswith("the state that is loaded back into model is its own memory, not a copy")


def test_a_copy_that_is_the_last_state_is_silent():
    model, optimizer = c503.make()
    with fl.watch(model, optimizer) as seen:
        c503.train(model, optimizer)
        model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert [f for f in examine(seen) if f.code in {"C502", "C503"}] == []


def test_a_compiled_model_is_told_by_its_own_name():
    model, optimizer = c503.make()
    used = torch.compile(model, backend="eager")
    with fl.watch(model, optimizer) as seen:
        c503.train(used, optimizer)
        best = used.state_dict()
        c503.train(used, optimizer)
        used.load_state_dict(best)
    (told,) = [f for f in examine(seen) if f.code in {"C502", "C503"}]
    assert (told.code, told.severity, told.remedy) == ("C503", Severity.ERROR, "copy.deepcopy(model.state_dict())")
