"""Optional dependencies: imported where they are needed, and missed with the command that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from frostline.errors import MissingExtra


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: the dotted name of the module.
        extra: the extra of the package ``frostline`` that brings it.
        purpose: what it is needed for, as the subject of a sentence.

    Returns:
        The imported module.

    Raises:
        MissingExtra: its package is not installed. An ``ImportError`` inside an installed package passes through.

    Example:
        >>> require("json", extra="train", purpose="Reading labels").__name__
        'json'
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra(
            f"{purpose} needs the package {package!r}, which is not installed.\n"
            f"  fix: python -m pip install 'frostline[{extra}]'"
        ) from None
    return importlib.import_module(module)
