"""Seeds and orders depend on their numbers and on nothing else."""

from __future__ import annotations

import hashlib

import torch

from frostline.finetune.loop import EpochSampler
from frostline.runs.seeds import drops_last, hashed_seed, mix_seed, order_of


def test_neighbours_give_unlike_seeds_and_the_order_of_the_numbers_counts():
    assert len({mix_seed(one, other) for one in range(30) for other in range(30)}) == 900
    assert mix_seed(2**64 - 1, 3) < 2**64


def test_a_seed_is_the_same_in_every_version():
    """Runs of earlier versions are done again with it; on a GPU all of its bits count."""
    assert mix_seed(0) == 7960286522194355700
    assert mix_seed(7, 2, 3) == 6551540871056681541
    assert mix_seed(2**64 - 1, 3) == 7495913118739840152


def test_hashed_seeds_of_neighbours_are_unlike_and_the_same_in_every_version():
    assert len({hashed_seed(0, epoch, index) for epoch in range(30) for index in range(30)}) == 900
    # What augmented the images of earlier versions.
    digest = hashlib.blake2b(b"3,1,7", digest_size=8).digest()
    assert hashed_seed(3, 1, 7) == int.from_bytes(digest, "little")


def test_the_order_is_the_one_of_the_training_loop():
    sampler = EpochSampler(37, seed=5)
    sampler.set_epoch(3)
    assert list(sampler) == order_of(37, 5, 3).tolist()


def test_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    order_of(10, 0, 1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_only_a_last_batch_of_one_sample_is_left_out():
    assert [size for size in range(1, 12) if drops_last(size, 4)] == [5, 9]
    assert not any(drops_last(size, 1) for size in range(1, 5))
