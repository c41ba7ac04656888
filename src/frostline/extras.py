"""What is imported from outside: optional dependencies, where they are needed, and modules of the working directory."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
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


@contextmanager
def working_directory_importable() -> Generator[None, None, None]:
    """Modules of the working directory can be imported meanwhile, before all others; ``sys.path`` is restored.

    Example:
        >>> with working_directory_importable():
        ...     sys.path[0] == os.getcwd()
        True
    """
    here = os.getcwd()
    sys.path.insert(0, here)
    # A module that was written a moment ago is not in the import system's list of the folder yet.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # the imported code may have rearranged the path itself
            sys.path.remove(here)
