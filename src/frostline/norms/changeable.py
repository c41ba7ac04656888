"""Which batch norms a verb may give another forward, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from frostline.attach.ledger import holds_mode
from frostline.errors import CannotConvert, NormsError, NoStatistics, name_some
from frostline.norms.layers import statistics_of
from frostline.norms.observe import tracked_layers
from frostline.norms.own_forward import why_unruly
from frostline.norms.read_policy import describe
from frostline.state import names
from frostline.state.selection import Selector, select


def batch_norms(model: nn.Module, verb: str, *selectors: Selector) -> tuple[dict[str, _BatchNorm], dict[str, str]]:
    """The selected batch norms that keep running statistics, and why the other normalization layers are left out.

    Raises:
        NoStatistics: there is none.

    Example:
        >>> layers, skipped = batch_norms(nn.Sequential(nn.BatchNorm1d(2), nn.InstanceNorm1d(2)), "set_policy")
        >>> list(layers), skipped
        (['0'], {'1': 'InstanceNorm1d keeps no running statistics'})
    """
    root = names.unwrap(model)
    selected = select(root, *selectors).modules if selectors else dict(root.named_modules())
    tracked = tracked_layers(root, *selectors)
    layers: dict[str, _BatchNorm] = {}
    skipped: dict[str, str] = {}
    for path, module in root.named_modules():
        if path not in selected or statistics_of(module) is None:
            continue
        kind = type(module).__name__
        if path not in tracked:
            skipped[path] = f"{kind} keeps no running statistics"
        elif not isinstance(module, _BatchNorm):
            skipped[path] = f"{kind} is no batch norm: there are no statistics of a batch that it could use"
        else:
            layers[path] = module
    if not layers:
        reasons = [f"  {path or '(the model)'}: {why}" for path, why in list(skipped.items())[:8]]
        raise NoStatistics(
            f"{verb}: no batch norm with running statistics in what was selected of {type(root).__name__}\n"
            + "\n".join(reasons or ["  there is no normalization layer at all"])
        )
    return layers, skipped


def check_changeable(layers: Mapping[str, nn.Module], verb: str) -> None:
    """Refuse to change layers that are held, follow something else already, or have a forward that cannot.

    Raises:
        NormsError: held, or with another forward.
        CannotConvert: the class does not follow PyTorch's switches.
    """
    refused = {path: why for path, layer in layers.items() if (why := why_refused(layer))}
    if refused:
        raise NormsError(
            f"{verb}: {len(refused)} of {len(layers)} layers cannot be changed\n{reasons(refused)}\n"
            "  fix: thaw or remove that first, or select only the others"
        )
    unruly = {path: why for path, layer in layers.items() if (why := why_unruly(layer))}
    if unruly:
        raise CannotConvert(f"{verb}: not every layer can do that\n{reasons(unruly)}\n  fix: select only the others")


def why_refused(layer: nn.Module) -> str | None:
    """Why a layer's forward must not be replaced now, if so.

    Example:
        >>> why_refused(nn.BatchNorm1d(2)) is None
        True
    """
    if holds_mode(layer):
        return "held"
    replaced = layer.__dict__.get("forward")
    if replaced is None or getattr(replaced, "idle", False):
        return None
    ours = getattr(replaced, "set_by", None)
    return f"has a {ours} already" if ours else f"its forward has been replaced by {describe(replaced)}"


def reasons(by_path: Mapping[str, str]) -> str:
    """One line for each reason, with the paths that it is given for.

    Example:
        >>> print(reasons({"layer1.bn1": "held", "layer1.bn2": "held", "bn": "lazy"}))
          layer1.bn[1-2] (x2): held
          bn: lazy
    """
    lines: list[str] = []
    for why in dict.fromkeys(by_path.values()):
        paths = names.fold([path for path in by_path if by_path[path] == why])
        lines.append(f"  {name_some([str(folded) or '(the model)' for folded in paths])}: {why}")
    return "\n".join(lines)
