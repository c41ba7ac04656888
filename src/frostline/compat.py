"""Makes torchvision importable beside a torch build for which its compiled operators do not load.

Torchvision's ``_meta_registrations`` attaches fake kernels to ``torchvision::nms`` and ``torchvision::qnms``. Where
its shared library does not load (torch is a CPU build, torchvision is not) those operators do not exist and the
import fails with ``operator torchvision::nms does not exist``. Declaring the two schemas beforehand is enough: models
and transforms are plain Python. The operators themselves (``ops.nms``, ``ops.roi_align`` ...) stay unavailable.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType

import torch

from frostline.errors import TorchvisionWithoutOperators
from frostline.extras import require

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A declaration lives as long as its Library object, and torchvision stays imported for the life of the process.
_declared: list[torch.library.Library] = []


def import_torchvision(submodule: str = "") -> ModuleType:
    """Import torchvision, or one of its submodules, also where its compiled operators do not load.

    Nothing is changed where the plain import works.

    Args:
        submodule: a dotted name below ``torchvision``, ``"transforms"`` for example; empty for the package itself.

    Returns:
        The imported module.

    Raises:
        MissingExtra: torchvision is not installed.

    Warns:
        TorchvisionWithoutOperators: once per process, when the missing schemas had to be declared.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     transforms = import_torchvision("transforms")
        >>> transforms.CenterCrop(8)
        CenterCrop(size=(8, 8))
    """
    try:
        require("torchvision", extra="train", purpose="Loading images and models")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or _declared:
            raise
        _declare_schemas()
        _forget_partial_import()
        importlib.import_module("torchvision")
        warnings.warn(
            f"torchvision's compiled operators do not load beside torch {torch.__version__}; models and transforms "
            "work, torchvision.ops.nms and its siblings do not. To have them, install the torchvision that was built "
            "for this torch.",
            TorchvisionWithoutOperators,
            stacklevel=2,
        )
    return importlib.import_module(f"torchvision.{submodule}" if submodule else "torchvision")


def _declare_schemas() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)


def _forget_partial_import() -> None:
    """Remove what the failed import left behind, so that the next one starts afresh."""
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
