"""Which versions of a framework an integration works with: said when it is imported, not in the middle of a run."""

from __future__ import annotations

import re
import warnings
from importlib import metadata
from types import ModuleType

from frostline.errors import UnsupportedVersion, UntestedVersion
from frostline.extras import require

_NUMBERS = re.compile(r"\d+(?:\.\d+)*")


def supported(package: str, *, oldest: str, tested: str, extra: str, purpose: str) -> ModuleType:
    """Import a framework, if its version is one that the integration works with.

    Args:
        package: its name, to import and to install.
        oldest: the first version that is supported.
        tested: the last version that was tested, as far as it counts: a later ``2.6.9`` is no other than ``2.6``.
        extra: the extra of ``frostline`` that brings it.
        purpose: what it is needed for, as the subject of a sentence.

    Returns:
        The imported module.

    Raises:
        MissingExtra: it is not installed.
        UnsupportedVersion: it is older than ``oldest``; it is not imported then.

    Warns:
        UntestedVersion: it is newer than ``tested``.

    Example:
        >>> supported("torch", oldest="2.4", tested="99", extra="train", purpose="Training").__name__
        'torch'
    """
    found = _installed(package)
    about = f"  supported: {package}>={oldest}, tested up to {tested}"
    if found is not None and _numbers(found) < _numbers(oldest):
        raise UnsupportedVersion(
            f"{purpose} needs a newer {package}.\n  found: {package} {found}\n{about}\n"
            f"  fix: python -m pip install '{package}>={oldest}'"
        )
    module = require(package, extra=extra, purpose=purpose)
    if found is not None and _numbers(found)[: len(_numbers(tested))] > _numbers(tested):
        warnings.warn(
            f"{purpose}: {package} {found} is newer than what was tested; what follows may not hold.\n{about}",
            UntestedVersion,
            stacklevel=3,
        )
    return module


def _installed(package: str) -> str | None:
    """Its version as its metadata says, without importing it; ``None`` where it has none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    found = _NUMBERS.match(version)
    return tuple(map(int, found.group().split("."))) if found else ()
