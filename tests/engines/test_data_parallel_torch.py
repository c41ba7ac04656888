"""Holds under ``nn.DataParallel``: right, but for layers that write their own tensors in forward, which it refuses.

Replicas are made anew in each forward pass, so that a hold or a thaw at any time counts from the next one on, and
nothing has to be wrapped again. On the CPU DataParallel only calls the module; here replicas are made as
``torch/nn/parallel/replicate.py`` makes them, by the same method of the module, with their tensors copied on the CPU.
"""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import CannotFreeze
from frostline.optim import Stage, Step, Unfreeze, Unfreezing


def replicas_of(network, count=2):
    """Shallow copies; the first shares the buffers of the original, as the one on the first device does."""
    modules = list(network.modules())
    number = {module: index for index, module in enumerate(modules)}
    replicas = []
    for rank in range(count):
        copies = [module._replicate_for_data_parallel() for module in modules]
        for module, replica in zip(modules, copies, strict=True):
            for name, child in module._modules.items():
                replica._modules[name] = None if child is None else copies[number[child]]
            for name, parameter in module._parameters.items():
                # A product of the original, by which gradients come back to it: no leaf, and no parameter.
                object.__setattr__(replica, name, None if parameter is None else parameter * 1.0)
            for name, buffer in module._buffers.items():
                replica._buffers[name] = buffer if buffer is None or rank == 0 else buffer.clone()
        replicas.append(copies[0])
    return replicas


def parallel_step(network, optimizer, x, count=2):
    """Replicas in threads, each with its part of the batch, as DataParallel runs them."""
    optimizer.zero_grad()
    replicas = replicas_of(network, count)
    outs = [None] * count

    def run(rank, part):
        outs[rank] = replicas[rank](part)

    threads = [threading.Thread(target=run, args=each) for each in enumerate(x.chunk(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cat(outs).square().mean().backward()
    optimizer.step()
    return replicas


@pytest.mark.parametrize("lock", ["soft", "hard"])
class TestReplicas:
    def test_a_hold_holds(self, make_net, batches, bytes_of, moved, lock):
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        hold = fl.freeze(net, "stem", optimizer=optimizer, lock=lock)
        before, head = bytes_of(net.stem), bytes_of(net.head)
        for x in batches:
            net.train()
            for replica in parallel_step(net, optimizer, x):
                assert not any(module.training for module in replica.stem.modules())
                assert replica.body.training
                # What a replica has of its own of a held layer has not moved either.
                assert torch.equal(replica.stem[1].running_mean, net.stem[1].running_mean)
            hold.verify()
        assert moved(before, bytes_of(net.stem)) == set()
        assert moved(head, bytes_of(net.head)) == head.keys()
        assert all(p.grad is None for p in net.stem.parameters())

    def test_a_guard_in_a_replica_leaves_the_original_alone(self, make_net, lock):
        net = make_net().train()
        hold = fl.freeze(net, "stem", lock=lock)
        modes = [module.training for module in net.modules()]
        replica = replicas_of(net)[1]
        for mode in (False, True):
            replica.train(mode)
            assert not any(module.training for module in replica.stem.modules())
            assert replica.body.training is mode
            assert [module.training for module in net.modules()] == modes
        hold.verify()

    def test_a_schedule_needs_no_wrapping_anew(self, make_net, batches, bytes_of, moved, lock):
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        unfreezing = Unfreezing(Unfreeze((Stage(("stem",), Step(3)),)), nn.DataParallel(net), optimizer)
        before = bytes_of(net.stem)
        for number, x in enumerate(batches[:5]):
            net.train()
            parallel_step(net, optimizer, x)
            assert (moved(before, bytes_of(net.stem)) == set()) == (number < 3)
        assert unfreezing.held == []
        assert all(p.grad.abs().sum() > 0 for p in net.stem.parameters())


def test_the_naive_way_moves_by_the_first_replica(make_net, batches, bytes_of, moved):
    """Its buffers are the original's; what the others see reaches nothing, so the statistics are those of a part."""
    net = make_net()
    net.stem.requires_grad_(False)
    optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
    before = bytes_of(net.stem)
    net.train()
    parallel_step(net, optimizer, batches[0])
    assert moved(before, bytes_of(net.stem)) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    alone = make_net().train()
    alone.stem(batches[0].chunk(2)[0])
    assert torch.equal(net.stem[1].running_mean, alone.stem[1].running_mean)


class TestLayersThatWriteTheirOwnTensors:
    """Their forward is replaced while they are held, and a replica would run the original's, in several threads."""

    def held(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(10, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 2))
        return net, fl.freeze(net, "0")

    def test_replicating_is_refused(self):
        net, hold = self.held()
        with pytest.raises(CannotFreeze, match=r"(?s)Embedding is held that writes.*fix: DistributedDataParallel"):
            replicas_of(net)
        hold.verify()
        assert torch.isfinite(nn.DataParallel(net)(torch.zeros(2, 3, dtype=torch.long))).all(), (
            "on the CPU: no replicas"
        )

    def test_a_copy_is_refused_too_and_a_thaw_ends_it(self):
        import copy

        net, hold = self.held()
        copied = copy.deepcopy(net)
        hold.thaw()
        replicas_of(net)
        with pytest.raises(CannotFreeze):
            replicas_of(copied)
        fl.freezing.holds_on(copied)[0].thaw()
        replicas_of(copied)

    def test_without_a_hold_it_writes_to_the_original(self):
        """The failing twin: DataParallel's first replica rescales the rows of a table that is frozen by hand."""
        net, hold = self.held()
        hold.thaw()
        net.requires_grad_(False)
        before = net[0].weight.clone()
        nn.DataParallel(net)(torch.arange(6).view(2, 3))
        assert not torch.equal(net[0].weight, before)


def test_on_the_cpu_the_wrapper_calls_the_module(make_net, batches):
    net = make_net()
    wrapped = nn.DataParallel(net)
    hold = fl.freeze(wrapped, "stem")
    wrapped.train()
    wrapped(batches[0]).square().mean().backward()
    hold.verify()
    assert net.body[1].num_batches_tracked == 4


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NOT TESTED: real replicas need two CUDA devices")
@pytest.mark.parametrize("lock", ["soft", "hard"])
def test_real_replicas(make_net, batches, bytes_of, moved, lock):
    net = make_net().cuda()
    wrapped = nn.DataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    hold = fl.freeze(wrapped, "stem", optimizer=optimizer, lock=lock)
    before = bytes_of(net.stem)
    for x in batches:
        wrapped.train()
        optimizer.zero_grad()
        wrapped(x.cuda()).square().mean().backward()
        optimizer.step()
        hold.verify()
    assert moved(before, bytes_of(net.stem)) == set()
    assert net.body[1].num_batches_tracked == 3 + len(batches)
