"""How numbers are printed on a page; pure Python. One place, so that a figure reads the same wherever it stands."""

from __future__ import annotations

import math

# What stands where nothing was measured; never a zero.
ABSENT = "–"
_MINUS = "\u2212"


def percent(share: float | None) -> str:
    """A share in 0..1 as percent with two decimals; only exact agreement prints as 0.00% or 100.00%.

    Example:
        >>> percent(0.98125), percent(None), percent(1.0), percent(0.99999)
        ('98.12%', '–', '100.00%', '<100.00%')
    """
    if share is None:
        return ABSENT
    if not math.isfinite(share):
        return size(share)
    text = f"{share * 100:.2f}%".replace("-", _MINUS)
    if text == "100.00%" and share < 1:
        return "<100.00%"
    if text == "0.00%" and share > 0:
        return ">0.00%"
    return text


def points(before: float | None, after: float | None) -> str:
    """The difference of two shares in percentage points, signed; a bare ``0`` only where they are equal.

    Example:
        >>> points(0.75, 0.5), points(0.5, 0.5), points(0.5, 0.500001)
        ('−25.00', '0', '+0.00')
    """
    if before is None or after is None:
        return ABSENT
    if before == after:
        return "0"
    return f"{(after - before) * 100:+.2f}".replace("-", _MINUS)


def size(value: float | None) -> str:
    """A magnitude with three significant digits; an exact zero is a bare ``0``.

    Example:
        >>> size(0.0123456), size(0.0), size(1234567.0), size(2e-9), size(float("inf"))
        ('0.0123', '0', '1.23e+06', '2e−09', 'infinite')
    """
    if value is None:
        return ABSENT
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else f"{_MINUS}infinite"
    return f"{value:.3g}".replace("-", _MINUS)


def count(number: int | None, noun: str = "", plural: str = "") -> str:
    """A number of things, with its noun in the right form.

    Example:
        >>> count(1, "entry", "entries"), count(2000, "entry", "entries"), count(None)
        ('1 entry', '2,000 entries', '–')
    """
    if number is None:
        return ABSENT
    if not noun:
        return f"{number:,}"
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """How long something took, with three significant digits up to two minutes; an exact zero is a bare ``0``.

    Example:
        >>> duration(0.0421), duration(41.0), duration(119.6), duration(754), duration(4980)
        ('0.0421 s', '41.0 s', '2 min 00 s', '12 min 34 s', '1 h 23 min')
        >>> duration(0.0), duration(0.0002)
        ('0 s', '<0.001 s')
    """
    if not seconds:
        return "0 s"
    if seconds < 0.001:
        return "<0.001 s"
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:#.3g}".removesuffix(".") + " s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def sentence(text: str) -> str:
    """The text with a capital at its beginning.

    Example:
        >>> sentence("one head was trained"), sentence("")
        ('One head was trained', '')
    """
    return text[:1].upper() + text[1:]
