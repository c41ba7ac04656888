"""S451: a parameter group came after the scheduler and is scheduled wrongly."""

import pytest
from planted_loops import marked_line, s451
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR, LRScheduler, OneCycleLR, StepLR

from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/s451.py"


def text(line: int) -> str:
    return f"""\
S451 error: group 1 came into optimizer after its LinearLR: its rate was to be 0.01 and rose to 0.0357
  seen: 2 parameters at a rate of 0.01, added at {FILE}:{line}  optimizer.add_param_group({{"params": \
model.trunk.parameters(), "lr": 0.01}})  # <- S451
        the scheduler multiplies: group 0 went from 0.028 to 0.1, a factor of 3.57
        so group 1 went from 0.01 to 0.0357, 3.57 times what was asked
  at:   {FILE}:{line}  optimizer.add_param_group({{"params": model.trunk.parameters(), "lr": 0.01}})  # <- S451
  fix:  give the group to the optimizer from the start, frozen; or make the scheduler anew after adding it"""


def test_it_is_found_with_its_line():
    found = examine(s451.failing())
    assert [f.code for f in found] == ["S451"]
    assert str(found[0]) == text(marked_line(s451.failing, "S451"))
    assert (found[0].severity, found[0].paths) == (Severity.ERROR, ())


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(s451.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "1 scheduler scales every group of its optimizer" in found.sound


class OfTheFirstGroup(LRScheduler):
    """A schedule of one's own, which knows the groups that there were."""

    def get_lr(self):
        known = len(self.base_lrs)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return [rate * 0.5 for rate in rates[:known]] + rates[known:]


@pytest.mark.parametrize(
    ("schedule", "settings", "error"),
    [
        (LambdaLR, {"lr_lambda": lambda i: 1 / (1 + i)}, "ValueError"),
        (CosineAnnealingWarmRestarts, {"T_0": 3}, "ValueError"),
        (OneCycleLR, {"max_lr": 0.1, "total_steps": 8}, "KeyError"),
    ],
)
def test_a_schedule_that_raises(schedule, settings, error):
    found = examine(s451.failing(schedule, **settings))
    assert [f.code for f in found] == ["S451"]
    assert found[0].line == marked_line(s451.failing, "S451")
    assert found[0].message == f"group 1 came into optimizer after its {schedule.__name__}: its next step raises"
    assert error in found[0].evidence


def test_a_group_that_is_not_scheduled():
    found = examine(s451.failing(OfTheFirstGroup, last_epoch=-1))
    assert [f.code for f in found] == ["S451"]
    assert found[0].message.endswith("its rate is not scheduled")


def test_a_schedule_that_scales_it_is_right():
    found = examine(s451.failing(StepLR, step_size=1, gamma=0.5))
    assert list(found) == []
    assert "1 group that came after a scheduler is scheduled as asked" in found.sound
