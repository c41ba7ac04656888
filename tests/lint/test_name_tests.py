"""Tests on the names of parameters, tried on a name."""

from __future__ import annotations

import pytest

from frostline.lint.name_tests import passes, texts_in


@pytest.mark.parametrize(
    ("test", "wanted"),
    [
        ("'head' in name", True),
        ("'head' not in name", False),
        ("not 'head' in name", False),
        ("'Head' in name.lower()", False),
        ("name == 'head.0.weight'", True),
        ("name.startswith('head')", True),
        ("name.startswith(('fc', 'head'))", True),
        ("name.endswith('bias')", False),
        ("'fc' in name or 'head' in name", True),
        ("'fc' in name and unknown(name)", False),
        ("'head' in name and unknown(name)", None),
        ("any(key in name for key in ('fc', 'head'))", True),
        ("any(key in name for key in ['fc', 'bias'])", False),
        ("all(key not in name for key in ('fc', 'bias'))", True),
        ("any(key in name for key in keys)", None),
        ("name.split('.')[0] == 'head'", True),
        ("name.split('.')[0] in {'head', 'fc'}", True),
        ("re.match('head|fc', name)", True),
        ("re.match('(', name)", None),
        ("p.requires_grad", True),
        ("p.ndim == 1", None),
        ("id(p) not in ids", None),
        ("?", None),
    ],
)
def test_one(test, wanted):
    assert passes((test,), "head.0.weight") is wanted


def test_all_have_to_be_passed():
    assert passes((), "a") is True
    assert passes(("'a' in name", "p.ndim > 1"), "a") is None
    assert passes(("'b' in name", "p.ndim > 1"), "a") is False


def test_texts():
    assert texts_in(("'a' in name", "name.startswith('b')", "?")) == ("a", "b")
