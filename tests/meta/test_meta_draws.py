"""Draws: exact, the same everywhere, uniform; and what a biased draw looks like to the same check."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.meta.draws import WORD, Draws


def uniform(counts: Counter[int], outcomes: int) -> bool:
    """A chi-square test, loose: six standard deviations above its mean."""
    expected = counts.total() / outcomes
    statistic = sum((counts[each] - expected) ** 2 / expected for each in range(outcomes))
    return statistic < (outcomes - 1) + 6 * (2 * (outcomes - 1)) ** 0.5


def words_by_hand(key: list[object], count: int) -> list[int]:
    secret = hashlib.blake2b(json.dumps(key).encode(), digest_size=64).digest()
    stream = b"".join(
        hashlib.blake2b(block.to_bytes(8, "little"), key=secret).digest() for block in range(count // 8 + 1)
    )
    return [int.from_bytes(stream[8 * i : 8 * i + 8], "little") for i in range(count)]


def test_words_are_those_of_blake2b_in_counter_mode():
    draws = Draws("a", 1, "ä")
    assert [draws.word() for _ in range(40)] == words_by_hand(["a", 1, "ä"], 40)


def test_golden_numbers():
    draws = Draws("golden", 7)
    assert [draws.word() for _ in range(2)] == GOLDEN_WORDS
    assert Draws("golden", 7).sample(1000, 6) == GOLDEN_SAMPLE


def test_keys_are_told_apart():
    keys: list[tuple[int | str, ...]] = [("a", "bc"), ("ab", "c"), ("a", 1), ("a", "1"), ("a",), ("a", ""), ("a", -1)]
    assert len({Draws(*key).word() for key in keys}) == len(keys)


@given(st.integers(1, 60), st.data())
def test_a_sample_has_no_repetition_and_begins_with_every_shorter_one(population: int, data: st.DataObject):
    count = data.draw(st.integers(0, population))
    sample = Draws("sample", population).sample(population, count)
    assert len(set(sample)) == count
    assert set(sample) <= set(range(population))
    shorter = data.draw(st.integers(0, count))
    assert Draws("sample", population).sample(population, shorter) == sample[:shorter]


@pytest.mark.parametrize("bound", [1, 2, 6, 97])
def test_numbers_below_a_bound_are_uniform(bound: int):
    draws = Draws("uniform", bound)
    counts = Counter(draws.below(bound) for _ in range(20_000))
    assert set(counts) == set(range(bound))
    assert bound == 1 or uniform(counts, bound)


def test_every_sequence_is_as_likely_as_any_other():
    sequences = {each: place for place, each in enumerate(itertools.permutations(range(5), 3))}
    counts = Counter(sequences[tuple(Draws("sequence", i).sample(5, 3))] for i in range(20_000))
    assert uniform(counts, len(sequences))


class Planted(Draws):
    """Draws whose words are given."""

    def __init__(self, next_word: Callable[[], int]) -> None:
        super().__init__()
        self.word = next_word


def test_words_above_the_last_whole_multiple_are_drawn_again():
    bound = 3 * 2**62  # a quarter of all words lies above its only whole multiple
    planted = iter([bound, WORD - 1, bound + 5, 17])
    assert Planted(lambda: next(planted)).below(bound) == 17
    assert next(planted, None) is None


def test_a_remainder_alone_is_biased_and_the_same_check_sees_it():
    # Twin: of the remainders by 3 * 2 ** 62, the lowest third comes twice as often.
    bound = 3 * 2**62
    naive, ours = Draws("bias"), Draws("bias")
    assert not uniform(Counter(naive.word() % bound // 2**62 for _ in range(3000)), 3)
    assert uniform(Counter(ours.below(bound) // 2**62 for _ in range(3000)), 3)


def test_a_whole_word_can_be_drawn():
    assert Draws("all").below(WORD) == Draws("all").word()


GOLDEN_WORDS = [11723186664219683348, 15559950013463928632]
GOLDEN_SAMPLE = [348, 564, 381, 826, 34, 843]
