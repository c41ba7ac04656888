"""Loops that look like a mistake of the optimizer, the schedule or a head, and are none."""

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

LOOPS: dict[str, Callable[[], object]] = {}


def loop(function):
    LOOPS[function.__name__] = function
    return function


def mlp(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def data(rows: int = 8):
    return torch.randn(rows, 4), torch.randint(3, (rows,))


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.trunk(x))


# -- gradient accumulation ---------------------------------------------------------------------------------------------


def accumulate(optimizer, model, count: int, steps_at: Callable[[int], bool], first: int = 0) -> None:
    for i in range(first, count):
        x, y = data()
        (cross_entropy(model(x), y) / 4).backward()
        if steps_at(i):
            optimizer.step()
            optimizer.zero_grad()


@loop
def accumulation_with_a_smaller_last_window():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            accumulation = 4
            for i in range(9):
                x, y = data()
                (cross_entropy(model(x), y) / accumulation).backward()
                if (i + 1) % accumulation == 0 or i + 1 == 9:
                    optimizer.step()
                    optimizer.zero_grad()
    return seen


@loop
def accumulation_that_counts_from_one():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i, (x, y) in enumerate((data() for _ in range(12)), 1):
            (cross_entropy(model(x), y) / 4).backward()
            if i % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
    return seen


@loop
def accumulation_that_counts_from_one_watched_from_the_middle_of_a_window():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [data() for _ in range(16)]
    watcher = fl.watch(model, optimizer)
    seen = None
    for i, (x, y) in enumerate(batches, 1):
        if i == 4:
            seen = watcher.__enter__()
        (cross_entropy(model(x), y) / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
    watcher.__exit__(None, None, None)
    return seen


@loop
def accumulation_that_counts_before_it_asks():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step, batches = 0, [data() for _ in range(12)]
        while batches:
            x, y = batches.pop()
            (cross_entropy(model(x), y) / 4).backward()
            step += 1
            if step % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
    return seen


@loop
def accumulation_watched_from_the_middle_of_a_window():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accumulate(optimizer, model, 3, lambda i: (i + 1) % 4 == 0)
    with fl.watch(model, optimizer) as seen:
        accumulate(optimizer, model, 14, lambda i: (i + 1) % 4 == 0, first=3)
    return seen


@loop
def accumulation_watched_from_the_last_small_window():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accumulate(optimizer, model, 8, lambda i: (i + 1) % 4 == 0)
    with fl.watch(model, optimizer) as seen:
        accumulate(optimizer, model, 9, lambda i: i == 8, first=8)
        accumulate(optimizer, model, 8, lambda i: (i + 1) % 4 == 0)
    return seen


@loop
def accumulation_that_zeroes_at_the_start_of_a_window():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(12):
            if i % 4 == 0:
                optimizer.zero_grad()
            x, y = data()
            (cross_entropy(model(x), y) / 4).backward()
            if i % 4 == 3:
                optimizer.step()
    return seen


@loop
def accumulation_of_uneven_batches_that_are_weighted():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            for rows in (8, 8, 8, 2):
                x, y = data(rows)
                (cross_entropy(model(x), y) * (rows / 26)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return seen


@loop
def accumulation_whose_last_batch_is_small():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i, rows in enumerate((8, 8, 8, 8, 8, 3)):
            x, y = data(rows)
            (cross_entropy(model(x), y) / 2).backward()
            if (i + 1) % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()
    return seen


@loop
def accumulation_with_a_growing_window():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fl.watch(model, optimizer) as seen:
        for size in (1, 1, 4, 4):
            for _ in range(size):
                x, y = data()
                (cross_entropy(model(x), y) / size).backward()
            optimizer.step()
            optimizer.zero_grad()
    return seen


@loop
def accumulation_with_a_scaler_that_skips():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        for i in range(16):
            x, y = data()
            scaler.scale(cross_entropy(100 * model(x), y) / 2).backward()
            if (i + 1) % 2 == 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    return seen


# -- several optimizers, unusual optimizers ----------------------------------------------------------------------------


def gan(critics: int, *, one_module: bool):
    with fl.watch() as seen:
        generator, critic = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        both = nn.ModuleDict({"generator": generator, "critic": critic}) if one_module else None
        of_generator = torch.optim.Adam(generator.parameters(), lr=0.01)
        of_critic = torch.optim.Adam(critic.parameters(), lr=0.01)
        for i in range(3 * critics):
            of_critic.zero_grad()
            fake = generator(torch.randn(8, 2))
            loss = critic(fake.detach()).mean() - critic(torch.randn(8, 4)).mean()
            loss.backward()
            of_critic.step()
            if i % critics == 0:
                of_generator.zero_grad()
                (-critic(generator(torch.randn(8, 2))).mean()).backward()
                of_generator.step()
        assert both is None or len(both) == 2
    return seen


@loop
def a_gan():
    return gan(1, one_module=False)


@loop
def a_gan_of_two_backward_passes_for_the_critic():
    with fl.watch() as seen:
        generator, critic = nn.Linear(2, 4), nn.Linear(4, 1)
        of_generator = torch.optim.Adam(generator.parameters(), lr=0.01)
        of_critic = torch.optim.Adam(critic.parameters(), lr=0.01)
        ones, zeros = torch.ones(8, 1), torch.zeros(8, 1)
        for _ in range(4):
            critic.zero_grad()
            mse_loss(critic(torch.randn(8, 4)), ones).backward()
            fake = generator(torch.randn(8, 2))
            mse_loss(critic(fake.detach()), zeros).backward()
            of_critic.step()
            generator.zero_grad()
            mse_loss(critic(fake), ones).backward()
            of_generator.step()
    return seen


@loop
def a_wasserstein_gan_whose_generator_steps_at_every_fifth():
    return gan(5, one_module=False)


@loop
def a_gan_in_one_module():
    return gan(1, one_module=True)


@loop
def an_actor_that_is_updated_every_second_time():
    with fl.watch() as seen:
        actor, critic = nn.Linear(4, 2), nn.Linear(6, 1)
        of_actor = torch.optim.Adam(actor.parameters(), lr=0.01)
        of_critic = torch.optim.Adam(critic.parameters(), lr=0.01)
        for i in range(6):
            states = torch.randn(8, 4)
            of_critic.zero_grad()
            value = critic(torch.cat([states, actor(states).detach()], 1))
            mse_loss(value, torch.randn(8, 1)).backward()
            of_critic.step()
            if i % 2 == 0:
                of_actor.zero_grad()
                (-critic(torch.cat([states, actor(states)], 1)).mean()).backward()
                of_actor.step()
    return seen


@loop
def two_optimizers_that_step_together():
    with fl.watch() as seen:
        model = TwoParts()
        slow = torch.optim.SGD(model.trunk.parameters(), lr=0.01)
        fast = torch.optim.Adam(model.head.parameters(), lr=0.01)
        for _ in range(4):
            x, y = data()
            slow.zero_grad()
            fast.zero_grad()
            cross_entropy(model(x), y).backward()
            slow.step()
            fast.step()
    return seen


@loop
def lbfgs():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
        x, y = data()

        def closure():
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
    return seen


class Twice(torch.optim.SGD):
    """Evaluates its closure twice for each step, and uses the second gradient."""

    def step(self, closure=None):
        with torch.enable_grad():
            closure()
            loss = closure()
        super().step()
        return loss


@loop
def a_closure_that_is_called_twice():
    with fl.watch() as seen:
        model = mlp()
        optimizer = Twice(model.parameters(), lr=0.1)
        x, y = data()

        def closure():
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
    return seen


class Sharp(torch.optim.Optimizer):
    """Sharpness-aware minimization in two stages, as it is usually written."""

    def __init__(self, params, base, rho=0.05, **settings):
        super().__init__(params, dict(rho=rho, **settings))
        self.base = base(self.param_groups, **settings)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["move"] = p.grad * 0.05
                p.add_(self.state[p]["move"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.state[p]["move"])
        self.base.step()
        self.zero_grad()

    def step(self, closure=None):
        raise NotImplementedError


@loop
def sharpness_aware_minimization():
    with fl.watch() as seen:
        model = mlp()
        optimizer = Sharp(model.parameters(), torch.optim.SGD, lr=0.1)
        for _ in range(3):
            x, y = data()
            for stage in (optimizer.first_step, optimizer.second_step):
                cross_entropy(model(x), y).backward()
                stage()
    return seen


@loop
def gradients_for_an_attack():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            x, y = data()
            shift = torch.zeros_like(x, requires_grad=True)
            for _ in range(2):
                cross_entropy(model(x + shift), y).backward()
                shift.data += 0.1 * shift.grad.sign()
                shift.grad = None
                model.zero_grad()
            optimizer.zero_grad()
            cross_entropy(model(x + shift.detach()), y).backward()
            optimizer.step()
    return seen


@loop
def one_loss_at_a_time_and_gradients_put_together_by_hand():
    with fl.watch() as seen:
        model = TwoParts()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            x, y = data()
            logits = model(x)
            kept = []
            for loss in (cross_entropy(logits, y), logits.square().mean()):
                optimizer.zero_grad()
                loss.backward(retain_graph=True)
                kept.append([p.grad.clone() for p in model.parameters()])
            for p, first, second in zip(model.parameters(), *kept, strict=True):
                p.grad = first + second
            optimizer.step()
    return seen


@loop
def two_losses_with_a_backward_pass_each():
    with fl.watch() as seen:
        model = TwoParts()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            x, y = data()
            cross_entropy(model(x), y).backward()
            x, y = data(16)
            (0.1 * cross_entropy(model(x), y)).backward()
            optimizer.step()
    return seen


@loop
def squares_of_gradients_before_training():
    with fl.watch() as seen:
        model = mlp()
        fisher = [torch.zeros_like(p) for p in model.parameters()]
        for _ in range(4):
            x, y = data()
            model.zero_grad()
            cross_entropy(model(x), y).backward()
            for total, p in zip(fisher, model.parameters(), strict=True):
                total += p.grad.square()
        model.zero_grad()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            x, y = data()
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    return seen


# -- clearing ----------------------------------------------------------------------------------------------------------


@loop
def gradients_cleared_by_hand():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            for p in model.parameters():
                p.grad = None
            x, y = data()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    return seen


@loop
def gradients_cleared_to_zeros():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            x, y = data()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    return seen


@loop
def a_loss_that_is_not_finite_is_passed_over():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(6):
            x, y = data()
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            if i % 3 != 1:
                optimizer.step()
    return seen


@loop
def one_step():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = data()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return seen


# -- what an optimizer has ---------------------------------------------------------------------------------------------


def train(model, optimizer, steps: int = 4, scheduler=None) -> None:
    for _ in range(steps):
        x, y = data()
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@loop
def the_trunk_is_left_out_of_the_optimizer():
    with fl.watch() as seen:
        model = TwoParts()
        train(model, torch.optim.SGD(model.head.parameters(), lr=0.1))
    return seen


@loop
def biases_alone():
    with fl.watch() as seen:
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])
        train(model, torch.optim.SGD([p for n, p in model.named_parameters() if n.endswith("bias")], lr=0.1))
    return seen


@loop
def norm_layers_alone():
    with fl.watch() as seen:
        blocks = [m for _ in range(3) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())]
        model = nn.Sequential(nn.Linear(4, 8), *blocks, nn.Linear(8, 3))
        norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm1d) for p in m.parameters()]
        train(model, torch.optim.SGD(norms, lr=0.1))
    return seen


class Prompted(nn.Module):
    def __init__(self):
        super().__init__()
        self.prompt = nn.Parameter(torch.zeros(4))
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.body(x + self.prompt)


@loop
def a_prompt_alone():
    with fl.watch() as seen:
        model = Prompted()
        train(model, torch.optim.SGD([model.prompt], lr=0.1))
    return seen


@loop
def a_tensor_of_no_module_in_the_optimizer():
    with fl.watch() as seen:
        model = mlp()
        temperature = nn.Parameter(torch.zeros(()))
        optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.1)
        for _ in range(4):
            x, y = data()
            optimizer.zero_grad()
            cross_entropy(model(x) * temperature.exp(), y).backward()
            optimizer.step()
    return seen


@loop
def an_image_is_optimized_through_a_net():
    with fl.watch() as seen:
        model = mlp()
        image = torch.randn(1, 4, requires_grad=True)
        optimizer = torch.optim.Adam([image], lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            model(image).square().sum().backward()
            optimizer.step()
    return seen


@loop
def heads_that_are_swapped_and_all_in_the_optimizer():
    with fl.watch() as seen:
        model = TwoParts()
        heads = nn.ModuleList([nn.Linear(8, 3) for _ in range(2)])
        optimizer = torch.optim.SGD([*model.trunk.parameters(), *heads.parameters()], lr=0.1)
        for head in heads:
            model.head = head
            train(model, optimizer, 3)
    return seen


@loop
def a_head_that_is_taken_away():
    with fl.watch() as seen:
        model = TwoParts()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, 2)
        model.head = nn.Identity()
        for _ in range(3):
            optimizer.zero_grad()
            model(data()[0]).square().mean().backward()
            optimizer.step()
    return seen


@loop
def thawed_bit_by_bit_with_everything_in_the_optimizer():
    with fl.watch() as seen:
        model = TwoParts()
        model.trunk.requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, 2)
        model.trunk[2].requires_grad_(True)
        train(model, optimizer, 2)
        model.trunk.requires_grad_(True)
        train(model, optimizer, 2)
    return seen


@loop
def thawed_by_a_group_under_a_schedule_that_scales_it():
    with fl.watch() as seen:
        model = TwoParts()
        model.trunk.requires_grad_(False)
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        scheduler = StepLR(optimizer, 1, 0.9)
        train(model, optimizer, 2, scheduler)
        model.trunk.requires_grad_(True)
        optimizer.add_param_group({"params": model.trunk.parameters(), "lr": 0.01})
        train(model, optimizer, 3, scheduler)
    return seen


@loop
def a_second_stage_with_an_optimizer_and_a_scheduler_of_its_own():
    with fl.watch() as seen:
        model = TwoParts()
        model.trunk.requires_grad_(False)
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        train(model, optimizer, 3, LinearLR(optimizer, 0.1, total_iters=3))
        model.trunk.requires_grad_(True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        train(model, optimizer, 3, LinearLR(optimizer, 0.1, total_iters=3))
    return seen


@loop
def frozen_by_the_library_and_thawed():
    with fl.watch() as seen:
        model = TwoParts()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        hold = fl.freeze(model, "trunk", optimizer=optimizer)
        train(model, optimizer, 3)
        hold.thaw()
        train(model, optimizer, 3)
    return seen


@loop
def trained_by_hand():
    with fl.watch() as seen:
        model = TwoParts()
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        for _ in range(4):
            x, y = data()
            model.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            with torch.no_grad():
                for p in model.trunk.parameters():
                    p -= 0.1 * p.grad
    return seen


class Student(nn.Module):
    """A student and, in the same module, its teacher: a moving average of it that is never frozen by name."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.teacher = copy.deepcopy(self.net)

    def forward(self, x):
        with torch.no_grad():
            target = self.teacher(x)
        return self.net(x), target


@loop
def a_teacher_in_the_same_module():
    with fl.watch() as seen:
        model = Student()
        optimizer = torch.optim.SGD(model.net.parameters(), lr=0.1)
        for _ in range(4):
            logits, target = model(data()[0])
            optimizer.zero_grad()
            mse_loss(logits, target + 1).backward()
            optimizer.step()
            with torch.no_grad():
                for mine, other in zip(model.teacher.parameters(), model.net.parameters(), strict=True):
                    mine.lerp_(other, 0.1)
    return seen


@loop
def a_group_that_is_empty():
    with fl.watch() as seen:
        model = nn.Sequential(nn.Linear(4, 3, bias=False))
        decay = [p for p in model.parameters() if p.dim() > 1]
        rest = [p for p in model.parameters() if p.dim() < 2]
        train(model, torch.optim.SGD([{"params": decay}, {"params": rest, "weight_decay": 0.0}], lr=0.1))
    return seen


@loop
def two_kinds_of_optimizer_for_one_net():
    with fl.watch() as seen:
        model = TwoParts()
        matrices = torch.optim.SGD([p for p in model.parameters() if p.dim() == 2], lr=0.1)
        others = torch.optim.AdamW([p for p in model.parameters() if p.dim() < 2], lr=0.01)
        for _ in range(4):
            x, y = data()
            for optimizer in (matrices, others):
                optimizer.zero_grad(set_to_none=True)
            cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in (matrices, others):
                optimizer.step()
    return seen


# -- what gets no gradient ---------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.mask_token = nn.Parameter(torch.zeros(4))
        self.head = nn.Linear(4, 3)
        self.other_head = nn.Linear(4, 5)
        self.pooler = nn.Linear(4, 4)

    def forward(self, x, taken=(0, 2), mask=None):
        if mask is not None:
            x = torch.where(mask, self.mask_token, x)
        for i in taken:
            x = x + self.blocks[i](x)
        return self.head(x), self.pooler(x)


@loop
def heads_branches_and_tokens_that_are_not_used():
    with fl.watch() as seen:
        model = Branching()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(6):
            x, y = data()
            optimizer.zero_grad()
            cross_entropy(model(x)[0], y).backward()
            optimizer.step()
    return seen


@loop
def layers_that_are_dropped_at_random():
    with fl.watch() as seen:
        model = Branching()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for i in range(6):
            x, y = data()
            optimizer.zero_grad()
            cross_entropy(model(x, taken=(i % 3,))[0], y).backward()
            optimizer.step()
    return seen


@loop
def a_second_net_whose_turn_comes_later():
    with fl.watch() as seen:
        first, second = mlp(), mlp()
        of_first = torch.optim.SGD(first.parameters(), lr=0.1)
        of_second = torch.optim.SGD(second.parameters(), lr=0.1)
        for _ in range(4):
            x, y = data()
            of_first.zero_grad()
            of_second.zero_grad()
            cross_entropy(first(x), y).backward()
            of_first.step()
            of_second.step()
    return seen


@loop
def attention_whose_projection_is_never_called():
    with fl.watch() as seen:
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        model = nn.Sequential(
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(12, 3)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(4):
            optimizer.zero_grad()
            cross_entropy(model(torch.randn(8, 3, 4)), torch.randint(3, (8,))).backward()
            optimizer.step()
    return seen


class Calling(TwoParts):
    def forward(self, x):
        return super().forward(x) * 2


@loop
def the_forward_of_a_parent_class():
    with fl.watch() as seen:
        model = Calling()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    return seen


class Guided(nn.Module):
    """A student with its teacher in a list, so that the teacher stays out of the state dict."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.teacher = [mlp().eval()]

    def forward(self, x):
        with torch.no_grad():
            target = self.teacher[0](x)
        return self.net(x), target


@loop
def a_teacher_in_a_list():
    with fl.watch() as seen:
        model = Guided()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            logits, target = model(data()[0])
            optimizer.zero_grad()
            mse_loss(logits, target).backward()
            optimizer.step()
    return seen


class Listing(nn.Module):
    """Layers that are registered, and listed once more for a loop."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.layers = [self.first, self.second]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@loop
def layers_that_are_registered_and_listed():
    with fl.watch() as seen:
        model = Listing()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    return seen


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 4)
        self.rnn = nn.GRU(4, 4, batch_first=True)
        self.out = nn.Linear(4, 12, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, words):
        return self.out(self.rnn(self.embedding(words))[0])


@loop
def tied_weights_in_a_recurrent_net():
    with fl.watch() as seen:
        model = Tied()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(4):
            words = torch.randint(12, (3, 5))
            optimizer.zero_grad()
            cross_entropy(model(words).flatten(0, 1), words.flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return seen


# -- schedules and resuming --------------------------------------------------------------------------------------------


@loop
def a_warm_up_from_zero_and_a_decay():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = LambdaLR(optimizer, lambda i: min(i / 3, 1.0) * (1 + math.cos(i / 6)) / 2)
        train(model, optimizer, 6, scheduler)
    return seen


@loop
def schedules_one_after_the_other():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        parts = [LinearLR(optimizer, 0.1, total_iters=2), StepLR(optimizer, 2)]
        train(model, optimizer, 5, SequentialLR(optimizer, parts, milestones=[2]))
    return seen


@loop
def one_cycle_and_a_plateau():
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        train(model, optimizer, 4, OneCycleLR(optimizer, 0.1, total_steps=5))
        plateau = ReduceLROnPlateau(optimizer)
        train(model, optimizer, 2)
        plateau.step(1.0)
    return seen


def saved():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = StepLR(optimizer, 1, 0.5)
    train(model, optimizer, 3, scheduler)
    return copy.deepcopy([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()])


@loop
def resumed_with_everything():
    weights, state, schedule = saved()
    with fl.watch() as seen:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = StepLR(optimizer, 1, 0.5)
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
        scheduler.load_state_dict(schedule)
        train(model, optimizer, 3, scheduler)
    return seen


@loop
def resumed_by_telling_the_scheduler_where():
    weights, state, _ = saved()
    with fl.watch() as seen:
        model = mlp()
        model.load_state_dict(weights)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer.load_state_dict(state)
        train(model, optimizer, 3, StepLR(optimizer, 1, 0.5, last_epoch=3))
    return seen


@loop
def resumed_by_winding_the_schedule_forward():
    weights, _, _ = saved()
    with warnings.catch_warnings(), fl.watch() as seen:
        warnings.simplefilter("ignore")
        model = mlp()
        model.load_state_dict(weights)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = StepLR(optimizer, 1, 0.5)
        for _ in range(3):
            scheduler.step()
        train(model, optimizer, 3, scheduler)
    return seen


@loop
def a_scaler_that_skips_the_first_step_under_a_schedule():
    with warnings.catch_warnings(), fl.watch() as seen:
        warnings.simplefilter("ignore")
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = StepLR(optimizer, 1, 0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        for _ in range(6):
            x, y = data()
            optimizer.zero_grad()
            scaler.scale(cross_entropy(100 * model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
    return seen


@loop
def groups_that_are_tried_caught_and_made():
    model = TwoParts()
    optimizer = torch.optim.Adam(model.head.parameters(), lr=0.01)
    optimizer.add_param_group({"params": model.trunk.parameters()})
    train(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    with fl.watch() as seen:
        optimizer = torch.optim.Adam(model.head.parameters(), lr=0.01)
        try:
            optimizer.load_state_dict(state)
        except ValueError:
            optimizer.add_param_group({"params": model.trunk.parameters()})
            optimizer.load_state_dict(state)
        train(model, optimizer, 3)
    return seen


@loop
def an_assigning_load_before_the_optimizer():
    with torch.device("meta"):
        model = mlp()
    state = mlp().state_dict()
    with fl.watch() as seen:
        model.load_state_dict(state, assign=True)
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    return seen


@pytest.mark.parametrize("name", LOOPS)
def test_nothing_above_information(name):
    torch.manual_seed(0)
    found = examine(LOOPS[name]())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert found.seen.missed == []
