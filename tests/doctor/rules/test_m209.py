"""M209: a mode that loading set."""

import torch
from planted_loops import m209, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
M209 warning: loading left net in eval mode, and it was trained so
  seen: eval() was called inside of from_pretrained(), at benchmarks/planted_loops/m209.py:{line}  model.eval()  # \
<- M209
        nothing set the mode between that and the pass at benchmarks/planted_loops/m209.py:{step}  \
nn.functional.cross_entropy(net(x), y).backward()
        eval mode in 1 dropout layer: body.2
  at:   benchmarks/planted_loops/m209.py:{line}  model.eval()  # <- M209
  fix:  call net.train() after loading"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(m209.failing())
    assert [f.code for f in found] == ["M209"]
    line = marked_line(m209.Classifier.from_pretrained, "M209")
    assert str(found[0]) == TEXT.format(line=line, step=line + 9)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.MANUAL)
    assert set(found[0].paths) == {"body.2"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(m209.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "the mode that loading left fits what 1 model did next" in found.sound


def test_inference_after_loading_is_right():
    torch.manual_seed(0)
    weights = m209.Classifier().state_dict()
    with fl.watch() as seen, torch.no_grad():
        net = m209.Classifier.from_pretrained(weights)
        net(torch.randn(4, 4))
    found = examine(seen)
    assert list(found) == []
    assert "the mode that loading left fits what 1 model did next" in found.sound


def test_train_mode_that_loading_left_is_seen_in_validation():
    torch.manual_seed(0)

    def load_adapter(net):
        net.train()

    with fl.watch() as seen:
        net = m209.Classifier()
        m209.fit(net, 2)
        net.eval()
        load_adapter(net)
        with torch.no_grad():
            net(torch.randn(4, 4))
    found = examine(seen)
    assert [(f.code, f.message) for f in found] == [
        ("M209", "loading left net in train mode, and it was used without gradients so")
    ]


def test_a_mode_for_which_nothing_cares_is_silent():
    torch.manual_seed(0)

    def load_model():
        return nn.Linear(4, 3).eval()

    with fl.watch() as seen:
        net = load_model()
        m209.fit(net, 2)
    assert list(examine(seen)) == []
