"""T701: statistics that take in what a learner is tested on."""

import torch
from planted_loops import marked_line, t701
from torch.func import functional_call

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
T701 warning: 1 normalization layer of model took in the data of 3 test passes of an adapted learner
  seen: functional_call in train mode with gradients off, 6 tensors given
        not given, and written to: 1.running_mean, 1.running_var, 1.num_batches_tracked
        each prediction depends on the rest of its batch, and the next task begins with these statistics
  at:   benchmarks/planted_loops/t701.py:{line}  functional_call(model, weights, (x[5:],)).argmax(1).eq(y[5:])  # \
<- T701
  fix:  give the calls copies of the buffers too: {{**adapted, **{{n: b.clone() for n, b in \
model.named_buffers()}}}}, or call model.eval() before testing"""


def test_it_is_found_with_its_line():
    found = examine(t701.failing())
    assert found[0].code == "T701"
    assert [f.code for f in found].count("T701") == 1
    line = marked_line(t701.failing, "T701")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.MANUAL)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(t701.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "3 test passes of adapted learners moved no statistics" in found.sound


def test_testing_in_eval_mode_is_silent():
    model = t701.make()
    with fl.watch(model) as seen:
        t701.meta_train(model, 2)
        model.eval()
        x, _ = t701.task()
        with torch.no_grad():
            functional_call(model, {n: p * 2 for n, p in model.named_parameters()}, (x,))
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []


def test_it_is_the_cause_where_the_inner_loop_too_writes_to_the_statistics():
    model = t701.make()
    with fl.watch(model) as seen:
        x, y = t701.task()
        weights = {n: p * 2 for n, p in model.named_parameters()}
        loss = torch.nn.functional.cross_entropy(functional_call(model, weights, (x,)), y)
        torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            functional_call(model, weights, (x,))
    # One cause: the calls are not given the buffers, be it in training or in testing.
    assert [f.code for f in examine(seen) if f.severity is not Severity.INFO] == ["T702"]
