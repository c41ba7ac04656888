"""What lies below a path, against asking every path."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from frostline.audit.prefixes import Prefixes

TOKENS = st.sampled_from(["a", "b", "ab", "a-", "a0", "0", "é"])
PATHS = st.lists(st.lists(TOKENS, min_size=1, max_size=4).map(".".join), unique=True, max_size=30)


@given(PATHS, st.lists(TOKENS, max_size=3).map(".".join))
def test_it_is_what_a_plain_search_finds_in_the_same_order(paths, path):
    expected = [p for p in paths if not path or p.startswith(f"{path}.")]
    assert list(Prefixes(paths).below(path)) == expected
