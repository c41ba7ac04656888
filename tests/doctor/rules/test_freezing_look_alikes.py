"""Sound loops that look like mistakes of freezing: no rule of freezing says more than information about them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.trunk(x))


def batch():
    return torch.randn(16, 4), torch.randint(3, (16,))


def fit(model, optimizer, steps=4, *, to_none=True, scheduler=None):
    model.train()
    for _ in range(steps):
        x, y = batch()
        optimizer.zero_grad(set_to_none=to_none)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def sgd(parameters, **settings):
    return torch.optim.SGD(parameters, lr=0.1, **settings)


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def plain():
    model = Net()
    fit(model, sgd(model.parameters(), momentum=0.9, weight_decay=1e-3), to_none=False)


def one_step():
    model = Net()
    fit(model, sgd(model.parameters()), 1)


def freeze_all_and_thaw_the_head():
    model = Net()
    for p in model.parameters():
        p.requires_grad = False
    for p in model.head.parameters():
        p.requires_grad = True
    fit(model, sgd(trainable(model)))


def set_requires_grad(module, flag):
    for p in module.parameters():
        p.requires_grad = flag


def one_helper_for_both():
    model = Net()
    set_requires_grad(model, False)
    set_requires_grad(model.head, True)
    fit(model, sgd(trainable(model)))


def new_head_on_a_frozen_model():
    model = Net()
    for p in model.parameters():
        p.requires_grad = False
    model.head = nn.Linear(8, 3)
    fit(model, sgd(model.head.parameters()))


def new_head_beside_a_thawed_layer():
    model = Net()
    for name, p in model.named_parameters():
        if not name.startswith("trunk.3"):
            p.requires_grad = False
    model.head = nn.Linear(8, 3)
    fit(model, sgd(trainable(model)))


def thawed_step_by_step():
    model = Net()
    model.trunk.requires_grad_(False)
    optimizer = sgd(model.head.parameters())
    fit(model, optimizer, 2)
    model.trunk.requires_grad_(True)
    optimizer.add_param_group({"params": model.trunk.parameters()})
    fit(model, optimizer, 2)


def frozen_step_by_step():
    model = Net()
    optimizer = sgd(model.parameters(), momentum=0.9)
    fit(model, optimizer, 2)
    model.trunk.requires_grad_(False)
    fit(model, optimizer, 2)


def zeros_that_move_nothing():
    model = Net()
    optimizer = sgd(model.parameters())
    fit(model, optimizer, 2, to_none=False)
    model.trunk.requires_grad_(False)
    fit(model, optimizer, 3, to_none=False)


def adversarial():
    generator, critic = Net(4), nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    one, two = torch.optim.Adam(generator.parameters()), torch.optim.Adam(critic.parameters())
    for _ in range(3):
        x, _ = batch()
        set_requires_grad(critic, False)
        one.zero_grad()
        critic(generator(x)).mean().backward()
        one.step()
        set_requires_grad(critic, True)
        two.zero_grad()
        (critic(generator(x).detach()).mean() - critic(torch.randn(16, 3)).mean()).backward()
        two.step()
        for p in critic.parameters():
            p.data.clamp_(-0.1, 0.1)


def teacher_that_follows():
    student = Net()
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    optimizer = sgd(student.parameters())
    for _ in range(3):
        x, _ = batch()
        with torch.no_grad():
            target = teacher(x)
        optimizer.zero_grad()
        (student(x) - target - 1).square().mean().backward()
        optimizer.step()
        for mine, its in zip(teacher.parameters(), student.parameters(), strict=True):
            mine.data.mul_(0.9).add_(its.data, alpha=0.1)


class Contrast(nn.Module):
    """Two encoders in one model, one following the other in forward, as in momentum contrast."""

    def __init__(self):
        super().__init__()
        self.encoder_q, self.encoder_k = Net(), Net()
        for p in self.encoder_k.parameters():
            p.requires_grad = False

    @torch.no_grad()
    def _follow(self):
        for mine, its in zip(self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True):
            mine.data = mine.data * 0.9 + its.data * 0.1

    def forward(self, x):
        q = self.encoder_q(x)
        with torch.no_grad():
            self._follow()
            k = self.encoder_k(x)
        return q - k


def momentum_contrast():
    model = Contrast()
    fit(model, sgd(trainable(model)))


def target_network():
    online = Net()
    target = Net()
    target.requires_grad_(False)
    optimizer = torch.optim.Adam(online.parameters())
    for _ in range(4):
        target.load_state_dict(online.state_dict())
        x, _ = batch()
        optimizer.zero_grad()
        (online(x) - target(x).mean() - 1).square().mean().backward()
        optimizer.step()


def averaged():
    model = Net()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = sgd(model.parameters())
    for _ in range(3):
        fit(model, optimizer, 1)
        average.update_parameters(model)


class Codebook(nn.Module):
    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(4, 4), requires_grad=False)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        with torch.no_grad():
            self.codes.data.mul_(0.99).add_(0.01 * x.mean(0))
        return self.out(x + self.codes.mean(0))


def codebook():
    model = Codebook()
    fit(model, sgd(trainable(model)))


def features_without_gradients():
    model = Net()
    optimizer = sgd(model.head.parameters())
    for _ in range(3):
        x, y = batch()
        with torch.no_grad():
            features = model.trunk(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.head(features), y).backward()
        optimizer.step()


def warm_up_from_zero():
    model = Net()
    optimizer = sgd([{"params": model.trunk.parameters(), "lr": 0.01}, {"params": model.head.parameters()}])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda i: i / 3, lambda i: 1.0])
    fit(model, optimizer, scheduler=scheduler)


def rate_raised_by_hand():
    model = Net()
    optimizer = sgd([{"params": model.trunk.parameters(), "lr": 0.0}, {"params": model.head.parameters()}])
    fit(model, optimizer, 2)
    optimizer.param_groups[0]["lr"] = 0.01
    fit(model, optimizer, 2)


def rate_that_stays_zero():
    model = Net()
    optimizer = torch.optim.Adam([{"params": model.trunk.parameters(), "lr": 0.0}, {"params": model.head.parameters()}])
    fit(model, optimizer, scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1))


class WithNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.trunk(x))

    def train(self, mode=True):
        """As in detectors: the norm layers keep the statistics of the pretrained model, and their weights train."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


def norms_in_eval_mode():
    model = WithNorms()
    fit(model, sgd(model.parameters()))


class Tagger(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 12, bias=bias)
        self.head.weight = self.embed.weight
        self.trainable = True

    def forward(self, ids):
        return self.head(self.body(self.embed(ids)))


def tag(model, optimizer):
    for _ in range(3):
        ids = torch.randint(12, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), ids).backward()
        optimizer.step()


def tied_and_trained():
    model = Tagger(bias=True)
    tag(model, torch.optim.AdamW(model.parameters(), weight_decay=0.1))


def tied_and_frozen_at_both_ends():
    model = Tagger()
    model.embed.requires_grad_(False)
    model.head.requires_grad_(False)
    tag(model, sgd(trainable(model)))


class LowRank(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, 2, bias=False)
        self.b = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


def adapters_in_a_frozen_trunk():
    model = Net()
    model.trunk.requires_grad_(False)
    model.trunk[0] = LowRank(model.trunk[0])
    model.trunk[3] = LowRank(model.trunk[3])
    fit(model, sgd(trainable(model)))


class TwoHeads(Net):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(8, 3)

    def forward(self, x):
        features = self.trunk(x)
        self.spare = self.other(features)
        return self.head(features)


def head_that_no_loss_uses():
    model = TwoHeads()
    fit(model, sgd(model.parameters()))


class Checkpointed(Net):
    def forward(self, x):
        x = checkpoint(self.trunk, x.requires_grad_(), use_reentrant=True)
        return self.head(x)


def reentrant_checkpointing():
    model = Checkpointed()
    fit(model, sgd(model.parameters()))


class Switched(Net):
    """A class with a switch of its own, that it acts on."""

    def __init__(self):
        super().__init__()
        self.trainable = False

    def forward(self, x):
        with torch.set_grad_enabled(self.trainable):
            features = self.trunk(x)
        return self.head(features)


def accumulation():
    model = Net()
    optimizer = sgd(model.parameters())
    for i in range(6):
        x, y = batch()
        (nn.functional.cross_entropy(model(x), y) / 2).backward()
        if i % 2:
            optimizer.step()
            optimizer.zero_grad()


def second_order():
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    x, y = batch()

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)


def recurrent_with_validation():
    model = nn.LSTM(4, 8, num_layers=2, dropout=0.1, batch_first=True)
    head = nn.Linear(8, 3)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()])
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(model(torch.randn(6, 5, 4))[0][:, -1]), torch.randint(3, (6,))).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            head(model(torch.randn(6, 5, 4))[0][:, -1])


def names_in_an_empty_list():
    model = Net()
    freeze = []
    for name, p in model.named_parameters():
        p.requires_grad = True
        if any(part in name for part in freeze):
            p.requires_grad = False
    fit(model, sgd(model.parameters()))


def weight_decay_groups():
    model = Net()
    decay, rest = [], []
    for name, p in model.named_parameters():
        (rest if "bias" in name or p.ndim == 1 else decay).append(p)
    groups = [{"params": decay, "weight_decay": 0.1, "name": "decay"}, {"params": rest, "lr_scale": 1.0}]
    fit(model, torch.optim.AdamW(groups))


LOOPS = [
    plain, one_step, freeze_all_and_thaw_the_head, one_helper_for_both, new_head_on_a_frozen_model,
    new_head_beside_a_thawed_layer, thawed_step_by_step, frozen_step_by_step, zeros_that_move_nothing, adversarial,
    teacher_that_follows, momentum_contrast, target_network, averaged, codebook, features_without_gradients,
    warm_up_from_zero, rate_raised_by_hand, rate_that_stays_zero, norms_in_eval_mode, tied_and_trained,
    tied_and_frozen_at_both_ends, adapters_in_a_frozen_trunk, head_that_no_loss_uses, reentrant_checkpointing,
    accumulation, second_order, recurrent_with_validation, names_in_an_empty_list, weight_decay_groups,
]  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_no_rule_of_freezing_speaks(loop):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fl.watch() as seen:
            loop()
    assert seen.steps
    assert seen.missed == []
    found = [f for f in examine(seen) if f.code.startswith("F") and f.severity is not Severity.INFO]
    assert found == []


def test_a_loop_that_is_watched_only_in_the_middle_of_its_life():
    torch.manual_seed(0)
    model = Net()
    for p in model.trunk.parameters():
        p.requires_grad = False
    optimizer = sgd(model.head.parameters(), momentum=0.9)
    fit(model, optimizer)
    with fl.watch(model, optimizer) as seen:
        fit(model, optimizer)
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []
