"""M208: a teacher in train mode."""

import copy

import torch
from planted_loops import m208, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
M208 error: teacher only gives targets, and 1 normalization layer of it ran in train mode
  seen: 3 passes in train mode, the first at benchmarks/planted_loops/m208.py:{line}  target = \
teacher(x).softmax(1)  # <- M208
        statistics that moved in them: 1.running_mean, 1.running_var, 1.num_batches_tracked
        training=True in 1 normalization layer; a module that is made is in train mode
        no optimizer has it, and its parameters stay
  at:   benchmarks/planted_loops/m208.py:{line}  target = teacher(x).softmax(1)  # <- M208
  fix:  teacher.eval()"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(m208.failing())
    assert [f.code for f in found] == ["M208"]
    line = marked_line(m208.distil, "M208")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)
    assert set(found[0].paths) == {"1"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(m208.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "teacher, which no optimizer has, ran in eval mode" in found.sound


def test_a_mean_teacher_in_train_mode_is_only_an_info():
    torch.manual_seed(0)
    with fl.watch() as seen:
        student = m208.make(8)
        teacher = copy.deepcopy(student).requires_grad_(False)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for _ in range(3):
            x = torch.randn(16, 4)
            with torch.no_grad():
                target = teacher(x).softmax(1)
            optimizer.zero_grad()
            nn.functional.cross_entropy(student(x), target).backward()
            optimizer.step()
            with torch.no_grad():
                for a, p in zip(teacher.parameters(), student.parameters(), strict=True):
                    a.lerp_(p, 0.1)
    assert [(f.code, f.severity) for f in examine(seen)] == [("M208", Severity.INFO)]


def test_a_teacher_whose_mode_changes_nothing_is_silent():
    torch.manual_seed(0)
    with fl.watch() as seen:
        m208.distil(m208.make(8), nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)), 3)
    assert list(examine(seen)) == []


def test_two_nets_that_train_in_turn_are_silent():
    torch.manual_seed(0)
    with fl.watch() as seen:
        nets = [m208.make(8), m208.make(8)]
        optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
        for i in range(4):
            x = torch.randn(16, 4)
            with torch.no_grad():
                target = nets[1 - i % 2](x).softmax(1)
            optimizers[i % 2].zero_grad()
            nn.functional.cross_entropy(nets[i % 2](x), target).backward()
            optimizers[i % 2].step()
    assert "M208" not in [f.code for f in examine(seen)]
