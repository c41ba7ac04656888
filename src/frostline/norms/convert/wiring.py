"""Where the input of each normalization layer comes from, and whether it goes anywhere else: found by tracing.

Nothing is run: torch.fx follows the model's forward with stand-ins for tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from frostline.errors import CannotConvert


@dataclass(frozen=True)
class Source:
    """What feeds a layer.

    Attributes:
        path: the module whose output is its input, and goes nowhere else; empty if that cannot be shown.
        why_not: why it cannot.
        ndim: dimensions of that output, where it was seen.
    """

    path: str = ""
    why_not: str = ""
    ndim: int | None = None


def traced_sources(root: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, Source]:
    """What feeds each of these layers, by ``torch.fx``.

    Args:
        root: the model, in the mode in which it is to be used.
        layers: by path.

    Raises:
        CannotConvert: the model cannot be traced, because what it does depends on its input.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.BatchNorm1d(2))
        >>> sources = traced_sources(model, {"1": model[1], "3": model[3]})
        >>> sources["1"].path, sources["3"].why_not
        ('0', "it follows '2' (ReLU)")
    """
    try:
        graph = _Tracer(layers).trace(root)
    except Exception as error:
        raise CannotConvert(
            f"fold: {type(root).__name__} cannot be traced, so what goes where is not known: {error}\n"
            "  fix: give inputs=, an example to run the model on"
        ) from error
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    read = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    found = {path: Source(why_not="forward does not call it") for path in layers}
    for node in graph.nodes:
        if node.op == "call_module" and node.target in found:
            found[node.target] = _source(root, node, calls, read)
    return found


class _Tracer(fx.Tracer):
    """Looks into a module only where one of the layers is below it: the rest need not be traceable."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._layers = {id(layer) for layer in layers.values()}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return id(m) in self._layers or all(id(below) not in self._layers for below in m.modules())


def _source(root: nn.Module, node: fx.Node, calls: Counter[str], read: list[str]) -> Source:
    if calls[str(node.target)] > 1:
        return Source(why_not="it is called more than once")
    before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
    if not isinstance(before, fx.Node) or before.op != "call_module":
        what = f"{before.op} {before.target}" if isinstance(before, fx.Node) else "no single value"
        return Source(why_not=f"it follows {what}")
    path = str(before.target)
    name = f"{path!r} ({type(root.get_submodule(path)).__name__})"
    if calls[path] > 1:
        return Source(why_not=f"{name}, which it follows, is called more than once")
    if list(before.users) != [node]:
        return Source(why_not=f"the output of {name} goes elsewhere too")
    if any(each.startswith((f"{path}.", f"{node.target}.")) for each in read):
        return Source(why_not=f"a forward reads the parameters of {name} or its own")
    return Source(path) if _is_linear(root.get_submodule(path)) else Source(why_not=f"it follows {name}")


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
