"""Holds and schedules under autocast and GradScaler: bfloat16 on the CPU, float16 where there is a CUDA device."""

from __future__ import annotations

import math

import pytest
import torch

import frostline as fl
from frostline.optim import Stage, Step, Unfreeze, Unfreezing

HALF = [
    pytest.param("cpu", torch.bfloat16),
    pytest.param(
        "cuda",
        torch.float16,
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: float16 needs a CUDA device"),
        ],
    ),
]
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1),
    "Adam fused": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1, fused=True),
}
INFINITE = {1, 2, 5}  # the steps whose gradients are infinite


def scaled_step(net, optimizer, scaler, x, *, half=torch.bfloat16, infinite=False, between=lambda: None, clip=False):
    """One step as torch's guide to mixed precision has it."""
    net.train()
    optimizer.zero_grad()
    with torch.autocast(x.device.type, half):
        loss = net(x).float().square().mean()
    scaler.scale(loss * (math.inf if infinite else 1.0)).backward()
    between()
    if clip:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize(("device", "half"), HALF)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
class TestSkippedSteps:
    def test_held_entries_are_equal_through_them(self, make_net, batches, bytes_of, moved, name, clip, device, half):
        net = make_net().to(device)
        optimizer = OPTIMIZERS[name](net.parameters())
        scaler = torch.amp.GradScaler(device, init_scale=8.0, growth_interval=1000)
        scaled_step(net, optimizer, scaler, batches[0].to(device), half=half)  # momentum of the stem, too
        hold = fl.freeze(net, "stem", optimizer=optimizer)
        before, head = bytes_of(net.stem), bytes_of(net.head)
        for number, x in enumerate(batches):
            scaled_step(net, optimizer, scaler, x.to(device), half=half, infinite=number in INFINITE, clip=clip)
            assert moved(before, bytes_of(net.stem)) == set()
            assert (moved(head, head := bytes_of(net.head)) == set()) == (number in INFINITE)
            hold.verify()

    def test_a_schedule_does_not_count_them(self, make_net, batches, bytes_of, moved, name, clip, device, half):
        net = make_net().to(device)
        optimizer = OPTIMIZERS[name](net.parameters())
        scaler = torch.amp.GradScaler(device, init_scale=8.0, growth_interval=1000)
        unfreezing = Unfreezing(Unfreeze((Stage(("stem",), Step(3)),)), net, optimizer)
        before, steps = bytes_of(net.stem), []
        for number, x in enumerate(batches):
            scaled_step(net, optimizer, scaler, x.to(device), half=half, infinite=number in INFINITE, clip=clip)
            steps.append(unfreezing.state_dict()["steps"])
            # The third step that counts is the one with number 4.
            if number <= 4:
                assert moved(before, bytes_of(net.stem)) == set()
        assert steps == [1, 1, 1, 2, 3, 3, 4, 5]
        assert "0.weight" in moved(before, bytes_of(net.stem))

    def test_a_hold_between_backward_and_step(self, make_net, batches, bytes_of, moved, name, clip, device, half):
        """Scaled gradients are there already: the guard drops them after they were unscaled or before."""
        net = make_net().to(device)
        optimizer = OPTIMIZERS[name](net.parameters())
        scaler = torch.amp.GradScaler(device, init_scale=8.0)
        scaled_step(net, optimizer, scaler, batches[0].to(device), half=half)
        before, holds = bytes_of(net.stem), []
        x = batches[1].to(device)
        count = net.stem[1].num_batches_tracked.item()

        def freeze():
            holds.append(fl.freeze(net, "stem", optimizer=optimizer))

        scaled_step(net, optimizer, scaler, x, half=half, between=freeze, clip=clip)
        # The forward pass came before the hold, and its statistics with it.
        assert net.stem[1].num_batches_tracked.item() == count + 1
        statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        assert moved(before, bytes_of(net.stem)) == statistics
        holds[0].verify()

    def test_the_naive_way_moves(self, make_net, batches, bytes_of, moved, name, clip, device, half):
        net = make_net().to(device)
        optimizer = OPTIMIZERS[name](net.parameters())
        scaler = torch.amp.GradScaler(device, init_scale=8.0)
        scaled_step(net, optimizer, scaler, batches[0].to(device), half=half)
        before = bytes_of(net.stem)

        def freeze():
            net.stem.requires_grad_(False)
            net.stem.eval()

        scaled_step(net, optimizer, scaler, batches[1].to(device), half=half, between=freeze, clip=clip)
        scaled_step(net, optimizer, scaler, batches[2].to(device), half=half, clip=clip)
        assert moved(before, bytes_of(net.stem)) == before.keys()


class TestAutocast:
    def test_values_and_gradients_of_the_rest_are_those_of_a_part_that_is_eval_and_without_gradients(
        self, make_net, batches
    ):
        def run(freeze):
            net = make_net().train()
            freeze(net)
            torch.manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16):
                out = net(batches[0])
            out.float().square().mean().backward()
            return out, {name: p.grad for name, p in net.named_parameters()}

        out, gradients = run(lambda net: fl.freeze(net, "stem"))
        expected, reference = run(lambda net: net.stem.eval().requires_grad_(False))
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, expected)
        assert [name for name, gradient in gradients.items() if gradient is None] == [
            "stem.0.weight", "stem.1.weight", "stem.1.bias"
        ]  # fmt: skip
        assert all(g is None or torch.equal(g, reference[name]) for name, g in gradients.items())

    def test_freezing_and_thawing_inside_of_one_region(self, make_net, batches):
        """Autocast caches casts of weights that require gradients; no cast outlives a hold or keeps a thaw out."""
        net = make_net().train()
        with torch.autocast("cpu", torch.bfloat16):
            net(batches[0]).float().square().mean().backward()
            hold = fl.freeze(net, "stem")
            net.train()(batches[1]).float().square().mean().backward()
            assert net.stem[0].weight.grad is None
            hold.verify()
            hold.thaw()
            net.train()(batches[2]).float().square().mean().backward()
            assert net.stem[0].weight.grad.abs().sum() > 0

    def test_digests_are_taken_of_the_master_weights(self, make_net, batches):
        net = make_net()
        with torch.autocast("cpu", torch.bfloat16):
            hold = fl.freeze(net, "stem")
            net.train()(batches[0])
        assert net.stem[0].weight.dtype == torch.float32
        hold.verify()


def test_an_optimizer_of_which_all_is_held_makes_the_scaler_complain(make_net, batches):
    """Not ours to decide: torch wants gradients in each optimizer that it steps, frozen by hand or held alike."""
    net = make_net()
    optimizer = torch.optim.SGD(net.stem.parameters(), lr=0.1)
    fl.freeze(net, "stem", optimizer=optimizer)
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaled_step(net, optimizer, scaler, batches[0])
