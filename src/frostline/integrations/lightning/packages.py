"""Which Lightning this is: one framework comes as ``lightning`` and as ``pytorch_lightning``, each with its classes.

Both may be installed. The one that a program has imported is the one that its Trainer is of; where that says nothing,
``lightning`` is taken. A Trainer of the other one works with our callbacks too: it calls hooks by their names.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from frostline.compat import import_torchvision
from frostline.integrations.versions import supported

# What is installed, and what of it has the Trainer.
_PACKAGES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
OLDEST, TESTED = "2.4", "2.6"


def framework() -> ModuleType:
    """The module with ``Trainer`` and ``Callback``, imported.

    Raises:
        MissingExtra: neither package is installed.
        UnsupportedVersion: it is too old.

    Warns:
        UntestedVersion: it is newer than what was tested.
        TorchvisionWithoutOperators: once, where torchvision's operators do not load.
    """
    known = [package for package, module in _PACKAGES.items() if module in sys.modules]
    there = [package for package in _PACKAGES if find_spec(package) is not None]
    package = [*known, *there, "lightning"][0]
    if find_spec("torchvision") is not None:
        # Lightning imports it by way of torchmetrics, and fails where its compiled operators do not load.
        import_torchvision()
    supported(package, oldest=OLDEST, tested=TESTED, extra="lightning", purpose="A callback for Lightning")
    return importlib.import_module(_PACKAGES[package])


def kinds(room: str, *names: str) -> tuple[type[Any], ...]:
    """Classes of these names, of every package that is imported and has them.

    Args:
        room: the module below the package: ``strategies``, for example.
        *names: of the classes; one that a version lacks is left out.

    Example:
        >>> sorted({kind.__name__ for kind in kinds("callbacks", "EarlyStopping", "NoSuchCallback")})
        ['EarlyStopping']
    """
    modules = [importlib.import_module(f"{base}.{room}") for base in _PACKAGES.values() if base in sys.modules]
    return tuple(getattr(module, name) for module in modules for name in names if hasattr(module, name))


def callback_class() -> type[Any]:
    """What our callbacks are made from: ``Callback`` of the package in use; of both, where both are imported."""
    chosen = framework().Callback
    others = [kind for kind in kinds("callbacks", "Callback") if kind is not chosen]
    return type("Callback", (chosen, *others), {"__module__": __name__}) if others else chosen
