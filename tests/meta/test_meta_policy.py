"""Policies as values: what a name means, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.errors import PolicyError
from frostline.meta import SOURCES, Policy

INNER = [source for source in SOURCES if source != "reptile"]


@pytest.mark.parametrize("name", SOURCES)
def test_a_name_stands_for_both_passes_and_support_and_reptile_leave_the_inner_steps_to_the_batch(name: str) -> None:
    policy = Policy.of(name)
    assert policy.query == name
    assert str(policy) == name
    assert policy.inner == (("batch",) if name in ("support", "reptile") else (name,))


@given(st.sampled_from(INNER), st.sampled_from(sorted(SOURCES)))
def test_the_text_of_a_policy_is_read_back(inner: str, query: str) -> None:
    policy = Policy((inner,), query)
    assert Policy.of(str(policy)) == policy == Policy.of(f"{inner}/{query}") == Policy.of(policy)
    assert policy.transductive == (query == "batch")


@given(st.lists(st.sampled_from(INNER), min_size=1, max_size=5), st.integers(0, 9))
def test_steps_beyond_the_last_take_the_last(inner: list[str], step: int) -> None:
    policy = Policy.of([*inner, "batch"])
    assert policy.inner_source(step) == inner[min(step, len(inner) - 1)]
    assert policy.sources == {*inner, "batch"}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("suport", "did you mean 'support'"),
        ("batch/nothing", "no statistics policy is called 'nothing'"),
        ("reptile/batch", "see no query"),
        (["batch"], "without a source for the inner steps"),
        ("", "no statistics policy is called ''"),
    ],
)
def test_what_is_no_policy_is_refused(asked: object, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        Policy.of(asked)  # type: ignore[arg-type]
