"""A model as a row of blocks, told from how its modules are nested: what layer-wise rates count depth by.

Knows modules and their order; knows nothing of optimizers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from frostline.state import names
from frostline.state.roles import is_norm
from frostline.state.selection import strict_ancestors

# Modules that only hold others.
_LISTS = (nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """Modules that train at one rate.

    Attributes:
        path: of the module; a parameter of the root stands under its own name.
        repeated: whether it is of a kind that stands in rows.
        is_norm: whether it is nothing but a normalization layer.
    """

    path: str
    repeated: bool
    is_norm: bool = False


def block_of(model: nn.Module) -> dict[str, Block]:
    """The block that each parameter lies in.

    From the root down, a module is looked into if it only holds others, or if there is a row of equal blocks somewhere
    below it; the first that is neither is the block.

    Args:
        model: the model, without wrappers.

    Returns:
        Path of each parameter, under all of its names, to its block.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())))
        >>> [block.path for block in block_of(model).values()]
        ['0', '0', '1.0.0', '1.0.0']
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    row_types = {path: _row_type(module) for path, module in modules.items() if _holds_others(module)}
    # What also stands by itself is a layer, and its rows are parts of blocks: convolutions with norm in an Inception.
    held = {id(module) for path, module in modules.items() if names.parent(path) in row_types}
    alone = {type(module) for path, module in modules.items() if path and id(module) not in held}
    kinds = set(filter(None, row_types.values())) - alone
    open_modules = {*row_types, *strict_ancestors(path for path, kind in row_types.items() if kind in kinds)}
    above: dict[str, str] = {}
    blocks: dict[str, Block] = {}
    found: dict[str, Block] = {}
    for path, module in modules.items():
        # A module comes behind the one that it is part of.
        above[path] = above.get(names.parent(path), "") or ("" if not path or path in open_modules else path)
        for own, parameter in module._parameters.items():
            if parameter is None:
                continue
            place = above[path] or names.join(path, own)
            if place not in blocks:
                block = modules.get(place)
                # A stage may be a row of one.
                repeated = type(block) in kinds and names.parent(place) in row_types
                blocks[place] = Block(place, repeated, is_norm=block is not None and is_norm(block))
            found[names.join(path, own)] = blocks[place]
    return found


def depths_of(blocks: Mapping[str, Block], order: Iterable[str] | None = None) -> dict[str, int]:
    """Count the blocks from the input to the output.

    What comes before the first of a row of equal blocks is the stem, with depth 0, and so are parameters of the root.
    What stands between and behind such blocks counts with the one before it. In a model without rows every block
    counts, but a normalization layer, which counts with the block before it.

    Args:
        blocks: path of each parameter to its block, in the order of registration.
        order: paths of modules in the order in which they run; by default the order of registration.

    Returns:
        Path of each parameter to its depth.

    Example:
        >>> row = {"a.w": Block("a", True), "b.w": Block("b", True)}
        >>> depths_of({"cls": Block("cls", False), **row, "n.w": Block("n", False)})
        {'cls': 0, 'a.w': 1, 'b.w': 2, 'n.w': 2}
    """
    row = list(dict.fromkeys(block.path for block in blocks.values()))
    if order is not None:
        ran = {path: index for index, path in reversed(list(enumerate(order)))}
        # What never ran keeps its place behind what was registered before it.
        position: dict[str, int] = {}
        last = -1
        for path in row:
            last = min((index for one, index in ran.items() if names.is_under(one, path)), default=last)
            position[path] = last
        row.sort(key=position.__getitem__)
    repeated = {block.path for block in blocks.values() if block.repeated}
    norms = {block.path for block in blocks.values() if block.is_norm}
    of_root = {name for name, block in blocks.items() if block.path == name}
    depths: dict[str, int] = dict.fromkeys(of_root, 0)
    depth = 0 if repeated else -1
    for path in row:
        if path not in of_root:
            if path in repeated or (not repeated and path not in norms):
                depth += 1
            depths[path] = max(depth, 0)
    return {name: depths[block.path] for name, block in blocks.items()}


def _holds_others(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential) and type(module) is not nn.Sequential:
        # It was given a name, mostly because it is a block of its own; a stage is a mere chain of blocks.
        return type(module).forward is nn.Sequential.forward and _row_type(module) is not None
    return isinstance(module, (nn.Sequential, *_LISTS))


def _row_type(container: nn.Module) -> type[nn.Module] | None:
    """The type of the equal blocks that a container holds, if there are several.

    Blocks have parts, and are no sequences: torchvision's convolution with norm and activation is one.
    """
    types = Counter(
        type(child)
        for child in container.children()
        if next(child.children(), None) is not None and not isinstance(child, (nn.Sequential, *_LISTS))
    )
    common = types.most_common(1)
    return common[0][0] if common and common[0][1] > 1 else None
