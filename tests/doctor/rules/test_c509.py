"""C509: a reload that forgot what was frozen."""

import copy

import torch
from planted_loops import c509, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
C509 warning: 2 parameters frozen before the reload are trainable after it
  seen: model trained while 0.0.weight, 0.0.bias were frozen
        resumed, of the same class, was loaded after that and has them trainable
        a state_dict holds values: neither requires_grad nor modes are in it
        its optimizer's state was loaded too, so this run goes on with the first
        optimizer steps moved all of them
  at:   benchmarks/planted_loops/c509.py:{line}  resumed.load_state_dict(checkpoint["model"])  # <- C509
  fix:  frostline.freeze(resumed, "0") after loading"""


def test_it_is_found_with_its_line():
    found = examine(c509.failing())
    assert found[0].code == "C509"
    assert [f.code for f in found].count("C509") == 1
    line = marked_line(c509.failing, "C509")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.SAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(c509.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "2 parameters stayed frozen over a reload" in found.sound


def second_phase(*, said: bool):
    """A head is trained first; then a new model, from its weights, trains as a whole."""
    with fl.watch() as seen:
        model, optimizer = c509.make()
        model[0].requires_grad_(False)
        c509.train(model, optimizer, 2)
        tuned, tuned_optimizer = c509.make()
        tuned.load_state_dict(copy.deepcopy(model.state_dict()))
        if said:
            tuned.requires_grad_(True)
        c509.train(tuned, tuned_optimizer, 2)
    return [f for f in examine(seen) if f.code == "C509"]


def test_a_second_phase_that_trains_everything_is_information_and_silent_where_it_is_said():
    assert [f.severity for f in second_phase(said=False)] == [Severity.INFO]
    assert second_phase(said=True) == []


def test_a_student_that_begins_as_its_frozen_teacher_is_silent():
    torch.manual_seed(0)
    with fl.watch() as seen:
        teacher = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False).eval()
        student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        student.load_state_dict(teacher.state_dict())
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for _ in range(2):
            x = torch.randn(8, 4)
            optimizer.zero_grad()
            nn.functional.mse_loss(student(x) + 1, teacher(x)).backward()
            optimizer.step()
    assert "C509" not in [f.code for f in examine(seen)]


def test_tensors_that_a_load_puts_in_place_of_frozen_ones_take_over_their_flags():
    model, _ = c509.make()
    other = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
    with fl.watch(model) as seen:
        model[0].requires_grad_(False)
        model.load_state_dict(other, assign=True)
        c509.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    assert "C509" not in [f.code for f in examine(seen)]


def test_a_hold_that_is_lost_on_resuming_is_an_error():
    with fl.watch() as seen:
        model, optimizer = c509.make()
        fl.freeze(model, "0", optimizer=optimizer)
        c509.train(model, optimizer, 2)
        resumed, resumed_optimizer = c509.make()
        resumed.load_state_dict(copy.deepcopy(model.state_dict()))
        resumed_optimizer.load_state_dict(optimizer.state_dict())
        c509.train(resumed, resumed_optimizer, 2)
    (told,) = [f for f in examine(seen) if f.code == "C509"]
    assert (told.severity, told.inferred) == (Severity.ERROR, False)


def test_the_remedy_in_memory_holds_and_the_same_audit_is_silent_then():
    seen = c509.failing()
    found = examine(seen)
    resumed, live = seen.model("resumed"), seen.model("resumed").live
    assert "C509: a hold on 0" in found.apply()
    before = {name: p.detach().clone() for name, p in live[0].named_parameters()}
    optimizer = next(o.live for o in seen.optimizers if o.name == resumed.tensors["1.weight"].owner[0])
    with fl.watch(live, optimizer) as again:
        c509.train(live, optimizer, 2)
    assert all(torch.equal(p, before[name]) for name, p in live[0].named_parameters())
    assert [f for f in examine(again) if f.severity is not Severity.INFO] == []
