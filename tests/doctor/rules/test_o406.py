"""O406: gradients are never cleared and pile up."""

import torch
from planted_loops import marked_line, o406
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/o406.py"


def text(line: int) -> str:
    return f"""\
O406 error: optimizer steps on gradients that nobody clears: each step adds to those of all steps before
  seen: 3 of 3 later steps of optimizer: 4 of 4 gradients still held what the step before had used
        nothing called optimizer.zero_grad() or the zero_grad() of its model
        norm of its gradients: 0.339 at its first step, 0.446 at the last
  at:   {FILE}:{line}  loss.backward()  # <- O406
  fix:  optimizer.zero_grad() before this line"""


def test_it_is_found_with_its_line():
    found = examine(o406.failing())
    assert [f.code for f in found] == ["O406"]
    assert str(found[0]) == text(marked_line(o406.failing, "O406"))
    assert (found[0].severity, found[0].paths) == (Severity.ERROR, ())


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(o406.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "gradients were cleared before each of 3 later steps" in found.sound


def train(model, optimizer, steps: int = 4) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_cleared_once_outside_of_the_loop():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        train(model, optimizer)
    found = examine(seen)
    assert [f.code for f in found] == ["O406"]
    assert "its gradients were cleared 1 time, last at" in found[0].evidence


def test_one_of_two_optimizers_that_step_together():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        slow = torch.optim.SGD(model[0].parameters(), lr=0.01)
        fast = torch.optim.SGD(model[2].parameters(), lr=0.1)
        for _ in range(4):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            fast.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            slow.step()
            fast.step()
    found = examine(seen)
    assert [f.code for f in found] == ["O406"]
    assert found[0].message.startswith("slow steps on gradients that nobody clears")


def test_one_of_two_nets_in_turn():
    torch.manual_seed(0)
    with fl.watch() as seen:
        generator, critic = nn.Linear(2, 4), nn.Linear(4, 1)
        of_generator = torch.optim.SGD(generator.parameters(), lr=0.01)
        of_critic = torch.optim.SGD(critic.parameters(), lr=0.01)
        for _ in range(4):
            fake = generator(torch.randn(8, 2))
            (critic(fake.detach()).mean() - critic(torch.randn(8, 4)).mean()).backward()
            of_critic.step()
            of_generator.zero_grad()
            (-critic(fake).mean()).backward()
            of_generator.step()
    found = examine(seen)
    assert [f.code for f in found] == ["O406"]
    assert found[0].message.startswith("of_critic steps on gradients that nobody clears")
