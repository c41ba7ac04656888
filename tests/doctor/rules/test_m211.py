"""M211: an optimizer with modes of its own."""

import torch
from planted_loops import m211, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
M211 error: optimizer was in its train mode while net was validated
  seen: 2 passes of net in eval mode, with the optimizer in train mode; the first at \
benchmarks/planted_loops/m211.py:{line}  net(torch.randn(16, 4)).argmax(1)  # <- M211
        ScheduleFreeSGD has train() and eval() of its own: the weights differ between them
  at:   benchmarks/planted_loops/m211.py:{line}  net(torch.randn(16, 4)).argmax(1)  # <- M211
  fix:  call optimizer.train() with net.train(), and optimizer.eval() with net.eval()"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(m211.failing())
    assert [f.code for f in found] == ["M211"]
    line = marked_line(m211.failing, "M211")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)
    assert set(found[0].paths) == set()


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(m211.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "optimizer was switched with its model" in found.sound


def test_a_step_in_eval_mode_is_seen_too():
    torch.manual_seed(0)
    with fl.watch() as seen:
        net = nn.Linear(4, 3)
        optimizer = m211.ScheduleFreeSGD(net.parameters())
        for i in range(4):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            if i == 2:
                optimizer.eval()
            optimizer.step()
    found = examine(seen)
    assert [f.code for f in found] == ["M211"]
    assert "2 steps of 4 in eval mode of the optimizer" in found[0].evidence


def test_fine_tuning_in_eval_mode_is_no_validation():
    torch.manual_seed(0)
    with fl.watch() as seen:
        net = nn.Linear(4, 3).eval()
        optimizer = m211.ScheduleFreeSGD(net.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
            optimizer.step()
    assert list(examine(seen)) == []


class Wrapped(torch.optim.Optimizer):
    """As accelerate wraps: it has `train` and `eval` to pass them on, whether or not there is something behind."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure=None):
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def train(self):
        getattr(self.optimizer, "train", lambda: None)()

    def eval(self):
        getattr(self.optimizer, "eval", lambda: None)()


def validated(make, *, switch: bool) -> list[str]:
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    optimizer = Wrapped(make(net.parameters()))
    with fl.watch(net, [optimizer]) as seen:
        for _ in range(3):
            net.train()
            optimizer.train()
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
            optimizer.step()
            net.eval()
            if switch:
                optimizer.eval()
            with torch.no_grad():
                net(torch.randn(16, 4))
    return [finding.code for finding in examine(seen)]


def test_a_wrapper_that_passes_modes_on_has_none_itself():
    assert validated(lambda parameters: torch.optim.SGD(parameters, lr=0.1), switch=False) == []


def test_behind_a_wrapper_it_is_found():
    assert validated(m211.ScheduleFreeSGD, switch=True) == []
    assert "M211" in validated(m211.ScheduleFreeSGD, switch=False)
