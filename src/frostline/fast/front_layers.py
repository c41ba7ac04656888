"""The layers of a model from its input on, as parts that can be frozen one after the other; the head is none of them.

Knows names and depths; knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from frostline.errors import ModelError, name_some, printable
from frostline.optim.depth import By, depth_of
from frostline.state import names
from frostline.state.selection import Selector


@dataclass(frozen=True)
class Layer:
    """One layer of the trunk.

    Attributes:
        depth: its number from the input on; 0 is the stem.
        title: the modules that it consists of.
        parameters: the paths of its parameters, each tensor once.
    """

    depth: int
    title: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class FrontLayers:
    """The trunk of a model, layer by layer.

    Attributes:
        layers: from the input on.
        told_by: what told their order, in words.
    """

    layers: tuple[Layer, ...]
    told_by: str
    _depths: Mapping[str, int]
    _deepest_name: tuple[int, ...]

    def may_end_behind(self, count: int) -> bool:
        """Whether the first ``count`` layers share no tensor with what comes behind them."""
        return all(deepest < count for deepest in self._deepest_name[:count])

    def parts(self, root: nn.Module, count: int) -> list[str]:
        """The first ``count`` layers as paths of modules, and of parameters that stand alone.

        In an ``nn.Sequential``, where the order is known, modules without parameters that come before a module of these
        layers belong to them: a dropout between two frozen layers is frozen too.
        """
        return _parts(root, {path for path, depth in self._depths.items() if depth < count})

    def trainable(self, root: nn.Module) -> dict[int, dict[str, nn.Parameter]]:
        """The depth of each layer that has trainable parameters, to these by path."""
        every = dict(root.named_parameters(remove_duplicate=False))
        found = {
            layer.depth: {path: every[path] for path in layer.parameters if every[path].requires_grad}
            for layer in self.layers
        }
        return {depth: members for depth, members in found.items() if members}

    def find(self, layer: int | str) -> int:
        """The depth of a layer, told by its depth or its title.

        Raises:
            ModelError: there is none.
        """
        for each in self.layers:
            if layer in (each.depth, each.title):
                return each.depth
        titles = name_some([f"{each.depth} {each.title}" for each in self.layers])
        raise ModelError(f"no front layer is {printable(repr(layer))}\n  found: {titles}\n  fix: one of these numbers")


def front_layers(
    model: nn.Module, *, by: By = "auto", head: Selector | Sequence[Selector] | None = None
) -> FrontLayers:
    """Find the layers of a trunk. Nothing is changed.

    Args:
        model: any module; wrappers are looked through.
        by: how depth is told; see :func:`~frostline.optim.depth.depth_of`.
        head: selectors of the head; by default the model's classifier, and where it has none, its deepest layer.

    Returns:
        The :class:`FrontLayers`.

    Raises:
        NothingSelected: a selector matches nothing.
        SelectionError: layers overlap or leave parameters out.
        ModelError: nothing is left in front of the head.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2), nn.Linear(2, 1))
        >>> front = front_layers(model, head="3")
        >>> [layer.title for layer in front.layers], front.parts(model, 2)
        (['0', '2'], ['0', '1', '2'])
    """
    root = names.unwrap(model)
    depths = depth_of(root, by=by, head=head)
    last = depths.deepest if depths.head else depths.deepest + 1
    count = last if depths.head else last - 1
    members: list[list[str]] = [[] for _ in range(count)]
    deepest = list(range(count))
    every = dict(root.named_parameters(remove_duplicate=False))
    # A tensor with several names trains with all of them: it is at rest no earlier than the deepest.
    reach: dict[int, int] = {}
    for path, parameter in every.items():
        reach[id(parameter)] = max(reach.get(id(parameter), 0), depths.of[path])
    seen: set[int] = set()
    for path, parameter in every.items():
        depth = depths.of[path]
        if depth < count:
            deepest[depth] = max(deepest[depth], reach[id(parameter)])
            if id(parameter) not in seen:
                members[depth].append(path)
        seen.add(id(parameter))
    if not count:
        raise ModelError(
            f"{type(root).__name__}: nothing comes before the head, so nothing can be frozen\n"
            "  fix: head=, the part that is to go on training"
        )
    titles: list[str] = []
    for number in range(count):
        inside = _parts(root, {path for path, depth in depths.of.items() if depth == number})
        modules = dict(root.named_modules(remove_duplicate=False))
        titles.append(
            name_some(
                [p for p in inside if p not in modules or next(modules[p].parameters(), None) is not None], most=3
            )
        )
    layers = [Layer(number, titles[number], tuple(members[number])) for number in range(count)]
    return FrontLayers(tuple(layers), depths.told_by, depths.of, tuple(deepest))


def _parts(root: nn.Module, inside: set[str]) -> list[str]:
    """The largest modules that have parameters and have them all inside; and parameters that stand alone."""
    seen: dict[int, int] = {}
    for _, module in root.named_modules(remove_duplicate=False):
        seen[id(module)] = seen.get(id(module), 0) + 1

    def visit(path: str, module: nn.Module) -> list[str]:
        own = [names.join(path, name) for name, _ in module.named_parameters(remove_duplicate=False)]
        if own and inside.issuperset(own):
            return [path]
        found = [
            place for name, value in module._parameters.items() if value is not None
            if (place := names.join(path, name)) in inside
        ]  # fmt: skip
        between: list[str] = []
        for name, child in module._modules.items():
            if child is None:
                continue
            place = names.join(path, name)
            if next(child.parameters(), None) is None:
                # One that stands elsewhere too would be frozen there as well.
                if isinstance(module, nn.Sequential) and all(seen[id(each)] == 1 for each in child.modules()):
                    between.append(place)
                continue
            below = visit(place, child)
            found += [*between, *below] if below == [place] else below
            between = []
        return found

    return visit("", root)
