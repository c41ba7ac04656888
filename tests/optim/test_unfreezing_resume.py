"""Stopping and going on, at every step of a schedule, ends where the run that was not stopped ends: to the bit."""

from __future__ import annotations

import io
import json

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from frostline.errors import FrozenStateMoved, ModelError
from frostline.optim import Epoch, Plateau, Stage, Step, Unfreeze, Unfreezing, gradual, param_groups

STEPS, EPOCH = 12, 2
SCHEDULES = {
    "steps": Unfreeze((Stage(("body",), Step(3), warmup=4), Stage(("stem",), Step(5), warmup=5))),
    "epochs": Unfreeze((Stage(("body",), Epoch(2), warmup=3), Stage(("stem.0", "stem.2"), Epoch(4), warmup=0))),
    "plateau": Unfreeze((Stage(("body",), Plateau(2), warmup=3), Stage(("*", "!body*", "!fc*"), Plateau(1)))),
    "mixed": Unfreeze((Stage(("body",), Step(3)), Stage(("stem",), Plateau(1, mode="min"), warmup=6))),
}
METRICS = [0.3, 0.3, 0.2, 0.5, 0.5, 0.4]
OPTIMIZERS = {
    "SGD": lambda g: torch.optim.SGD(g, momentum=0.9, weight_decay=0.01),
    "AdamW amsgrad": lambda g: torch.optim.AdamW(g, amsgrad=True),
    "Adam fused": lambda g: torch.optim.Adam(g, fused=True),
}
SCHEDULERS = {
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.01 * n for n, _ in enumerate(o.param_groups, 1)], STEPS + 1),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10, eta_min=1e-4),
}


class Net(nn.Sequential):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4))
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Dropout(0.3))
        self.fc = nn.Linear(4, 2)


class Job:
    """All that a run consists of; made alike on every start, but for its random weights."""

    def __init__(self, seed, schedule, optimizer, scheduler, model_state=None):
        torch.manual_seed(seed)
        self.model = Net()
        if model_state is not None:
            self.model.load_state_dict(model_state)
        groups = param_groups(self.model, 0.02, head_lr=0.05, layer_decay=0.5, by=["stem", "body"], weight_decay=0.01)
        self.optimizer = OPTIMIZERS[optimizer](groups)
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        self.unfreezing = Unfreezing(SCHEDULES.get(schedule, schedule), self.model, self.optimizer)

    def train(self, start, stop):
        for n in range(start, stop):
            torch.manual_seed(n)  # which is all that dropout and the batch depend on
            x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
            self.model.train()
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            self.scheduler.step()
            if (n + 1) % EPOCH == 0:
                self.model.eval()  # as a validation does
                self.unfreezing.epoch_end(METRICS[(n + 1) // EPOCH - 1])
        return self

    def state(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "unfreezing": self.unfreezing.state_dict(),
        }

    def saved(self):
        buffer = io.BytesIO()
        torch.save(self.state(), buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)

    def everything(self):
        """What has to agree at the end."""
        self.model.train()
        return self.saved() | {
            "requires_grad": {name: p.requires_grad for name, p in self.model.named_parameters()},
            "modes": {name: module.training for name, module in self.model.named_modules()},
            "held": self.unfreezing.held,
            "factors": [self.unfreezing.factor_of(group) for group in self.optimizer.param_groups],
        }


def same(a, b):
    """Equality to the bit, through containers."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


_whole = {}


def uninterrupted(schedule, optimizer, scheduler):
    key = (schedule, optimizer, scheduler)
    if key not in _whole:
        _whole[key] = Job(0, *key).train(0, STEPS).everything()
    return _whole[key]


COMBINATIONS = [
    *((schedule, "AdamW amsgrad", "ExponentialLR") for schedule in SCHEDULES),
    ("steps", "SGD", "OneCycleLR"),
    ("epochs", "SGD", "CosineAnnealingLR"),
    ("mixed", "Adam fused", "OneCycleLR"),
]


@pytest.mark.parametrize("combination", COMBINATIONS, ids=" ".join)
def test_the_schedules_have_a_middle(combination):
    # Otherwise stopping at every step would stop nothing.
    job = Job(0, *combination)
    stages, warm = set(), set()
    for n in range(STEPS):
        job.train(n, n + 1)
        stages.add(len(job.unfreezing.held))
        warm |= {job.unfreezing.factor_of(group) for group in job.optimizer.param_groups}
    assert len(stages) >= 3
    assert any(0 < factor < 1 for factor in warm)


ORDERS = ["optimizer, schedule", "schedule, optimizer", "model after it was attached"]


@pytest.mark.parametrize(
    ("combination", "order"),
    [(c, order) for c in COMBINATIONS for order in ORDERS if order == ORDERS[0] or c[1] != "AdamW amsgrad"],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_stopped_at_every_step(combination, order):
    expected = uninterrupted(*combination)
    for stop in range(STEPS + 1):
        saved = Job(0, *combination).train(0, stop).saved()
        if order == "model after it was attached":
            job = Job(100 + stop, *combination)
            job.model.load_state_dict(saved["model"])
        else:
            job = Job(100 + stop, *combination, model_state=saved["model"])
        if order == "schedule, optimizer":
            job.unfreezing.load_state_dict(saved["unfreezing"])
        job.optimizer.load_state_dict(saved["optimizer"])
        job.scheduler.load_state_dict(saved["scheduler"])
        if order != "schedule, optimizer":
            job.unfreezing.load_state_dict(saved["unfreezing"])
        assert same(job.train(stop, STEPS).everything(), expected), stop
        if not job.unfreezing.hold.released:
            job.unfreezing.hold.verify()


def test_without_the_schedules_state_it_ends_elsewhere():
    # The failing twin: the schedule begins anew, as one without a state does.
    combination = COMBINATIONS[0]
    saved = Job(0, *combination).train(0, 6).saved()
    job = Job(1, *combination, model_state=saved["model"])
    job.optimizer.load_state_dict(saved["optimizer"])
    job.scheduler.load_state_dict(saved["scheduler"])
    assert not same(job.train(6, STEPS).everything()["model"], uninterrupted(*combination)["model"])


def test_groups_that_are_added_later_cannot_be_resumed():
    # The failing twin of the other kind: an optimizer that gets its groups one by one.
    model = Net()
    optimizer = torch.optim.Adam(model.fc.parameters())
    optimizer.add_param_group({"params": list(model.body.parameters())})
    with pytest.raises(ValueError, match="different number of parameter groups"):
        torch.optim.Adam(Net().fc.parameters()).load_state_dict(optimizer.state_dict())


def test_the_state_goes_through_json():
    combination = COMBINATIONS[2]
    saved = Job(0, *combination).train(0, 7).saved()
    job = Job(1, *combination, model_state=saved["model"])
    job.optimizer.load_state_dict(saved["optimizer"])
    job.scheduler.load_state_dict(saved["scheduler"])
    job.unfreezing.load_state_dict(json.loads(json.dumps(saved["unfreezing"])))
    assert same(job.train(7, STEPS).everything(), uninterrupted(*combination))


def test_a_gradual_schedule_of_a_model_made_anew():
    combination = (gradual(Net(), every=Step(2), warmup=3), "SGD", "ExponentialLR")
    expected = Job(0, *combination).train(0, STEPS).everything()
    saved = Job(0, *combination).train(0, 5).saved()
    again = (gradual(Net(), every=Step(2), warmup=3), "SGD", "ExponentialLR")
    job = Job(1, *again, model_state=saved["model"])
    job.unfreezing.load_state_dict(saved["unfreezing"])
    job.optimizer.load_state_dict(saved["optimizer"])
    job.scheduler.load_state_dict(saved["scheduler"])
    assert same(job.train(5, STEPS).everything(), expected)


def test_what_is_still_held_is_verified_against_what_was_loaded():
    combination = COMBINATIONS[1]
    saved = Job(0, *combination).train(0, 5).saved()
    job = Job(1, *combination)
    job.model.load_state_dict(saved["model"])
    with pytest.raises(FrozenStateMoved):
        job.unfreezing.hold.verify()
    job.unfreezing.load_state_dict(saved["unfreezing"])
    job.unfreezing.hold.verify()
    with torch.no_grad():
        job.model.stem[0].weight.add_(1)
    with pytest.raises(FrozenStateMoved, match=r"stem\.0\.weight"):
        job.unfreezing.hold.verify()


class TestRefused:
    COMBINATION = ("SGD", "ExponentialLR")

    @pytest.mark.parametrize(
        ("other", "said"),
        [
            (Unfreeze((Stage(("body",), Step(3), warmup=4),)), "it has 2 stages\n  found: 1 stages here"),
            (
                Unfreeze((Stage(("body",), Step(4), warmup=4), Stage(("stem",), Step(5), warmup=5))),
                "its stage 1 is body at Step(number=3), warm-up 4\n  found: body at Step(number=4), warm-up 4 here",
            ),
            (
                Unfreeze((Stage(("body",), Step(3), warmup=4), Stage(("stem",), Step(5), warmup=6))),
                "its stage 2 is stem at Step(number=5), warm-up 5\n  found: stem at Step(number=5), warm-up 6 here",
            ),
            (
                Unfreeze((Stage(("body",), Step(3), warmup=4), Stage(("stem.0",), Step(5)))),
                "its stage 2 is stem at Step(number=5), warm-up 5\n  found: stem.0 at Step(number=5), warm-up 0 here",
            ),
            (Unfreeze((Stage(("body",), Plateau(3)), Stage(("stem",), Plateau(3, min_delta=0.1)))), "its stage 1 is"),
        ],
    )
    def test_the_state_of_another_schedule(self, other, said):
        saved = Job(0, "steps", *self.COMBINATION).train(0, 4).saved()["unfreezing"]
        job = Job(0, other, *self.COMBINATION)
        before = job.everything()
        with pytest.raises(ModelError) as refused:
            job.unfreezing.load_state_dict(saved)
        assert said in str(refused.value)
        assert str(refused.value).endswith("fix: the schedule that the run began with")
        assert same(job.everything(), before)

    def test_an_earlier_state(self):
        job = Job(0, "steps", *self.COMBINATION)
        early = job.saved()["unfreezing"]
        job.train(0, 4)
        before = job.everything()
        with pytest.raises(ModelError, match="before body was unfrozen\n  fix: load it into a schedule that has just"):
            job.unfreezing.load_state_dict(early)
        assert same(job.everything(), before)

    @pytest.mark.parametrize("version", [None, 0, 2])
    def test_another_version(self, version):
        job = Job(0, "steps", *self.COMBINATION)
        with pytest.raises(ModelError, match=f"of version {version}, this one reads 1"):
            job.unfreezing.load_state_dict(job.saved()["unfreezing"] | {"schema_version": version})

    @pytest.mark.parametrize("key", ["schedule", "steps", "epochs", "best", "bad", "begun"])
    def test_a_state_without_a_part_of_it_changes_nothing(self, key):
        saved = Job(0, "steps", *self.COMBINATION).train(0, 4).saved()["unfreezing"]
        del saved[key]
        job = Job(0, "steps", *self.COMBINATION)
        before = job.everything()
        with pytest.raises(KeyError, match=key):
            job.unfreezing.load_state_dict(saved)
        assert same(job.everything(), before)
