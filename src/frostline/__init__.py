"""Train part of a PyTorch model, and prove that the rest did not move.

The public names are below; everything else is reached by its room (``frostline.freezing``, ``frostline.tasks`` ...).
Names are imported when they are first used, so that ``import frostline`` by itself does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frostline import audit as audit
    from frostline import checkpoint as checkpoint
    from frostline import doctor as doctor
    from frostline import errors as errors
    from frostline import fast as fast
    from frostline import findings as findings
    from frostline import finetune as finetune
    from frostline import freezing as freezing
    from frostline import heads as heads
    from frostline import integrations as integrations
    from frostline import lint as lint
    from frostline import meta as meta
    from frostline import norms as norms
    from frostline import optim as optim
    from frostline import report as report
    from frostline import state as state
    from frostline import tasks as tasks
    from frostline.audit.watch import watch as watch
    from frostline.checkpoint.plan_load import plan_load as plan_load
    from frostline.doctor.examine import examine as examine
    from frostline.freezing.explain import explain as explain
    from frostline.freezing.verbs import freeze as freeze
    from frostline.freezing.verbs import frozen as frozen
    from frostline.heads.replace import replace_head as replace_head
    from frostline.norms.diagnose import diagnose as diagnose
    from frostline.norms.recalibrate import recalibrate as recalibrate
    from frostline.optim.groups import param_groups as param_groups
    from frostline.state.inventory import inventory as inventory
    from frostline.state.snapshot import snapshot as snapshot

    __version__: str

_NAMES = {
    "diagnose": "frostline.norms.diagnose",
    "examine": "frostline.doctor.examine",
    "explain": "frostline.freezing.explain",
    "freeze": "frostline.freezing.verbs",
    "frozen": "frostline.freezing.verbs",
    "inventory": "frostline.state.inventory",
    "param_groups": "frostline.optim.groups",
    "plan_load": "frostline.checkpoint.plan_load",
    "recalibrate": "frostline.norms.recalibrate",
    "replace_head": "frostline.heads.replace",
    "snapshot": "frostline.state.snapshot",
    "watch": "frostline.audit.watch",
}
__all__ = [
    "audit",
    "checkpoint",
    "diagnose",
    "doctor",
    "errors",
    "examine",
    "explain",
    "fast",
    "findings",
    "finetune",
    "freeze",
    "freezing",
    "frozen",
    "heads",
    "integrations",
    "inventory",
    "lint",
    "meta",
    "norms",
    "optim",
    "param_groups",
    "plan_load",
    "recalibrate",
    "replace_head",
    "report",
    "snapshot",
    "state",
    "tasks",
    "watch",
]


def _version() -> str:
    """As the wheel was built, or as an editable install is registered; looking it up takes some 50 ms there."""
    try:
        return importlib.import_module("frostline._version").__version__
    except ModuleNotFoundError:
        metadata = importlib.import_module("importlib.metadata")
    try:
        return metadata.version("frostline")
    except metadata.PackageNotFoundError:  # it is on the path, and installed nowhere
        return "0.0.0+unknown"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        globals()[name] = _version()
        return globals()[name]
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"frostline.{name}")
    raise AttributeError(f"module 'frostline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
