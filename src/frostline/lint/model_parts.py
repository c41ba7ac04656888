"""Which parts of a model have parameters of their own, as far as source tells."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from frostline.lint.scopes import Class
from frostline.lint.torch_names import is_module_class
from frostline.lint.values import Value

if TYPE_CHECKING:
    from frostline.lint.module_walk import ModuleWalk

# Classes of torch.nn that never have parameters.
_WITHOUT = re.compile(
    r"^(Identity|Flatten|Unflatten|Softmax\w*|Softmin|LogSoftmax|LogSigmoid|Sigmoid|Tanh\w*|ReLU6?|LeakyReLU|RReLU|ELU|"
    r"SELU|CELU|GELU|GLU|SiLU|Mish|Softplus|Softshrink|Softsign|Threshold|Hard\w+|\w*Dropout\w*|\w*Pool\dd|Upsampl\w+|"
    r"Pixel\w+|ChannelShuffle|\w+Pad\dd|Fold|Unfold|CosineSimilarity|PairwiseDistance|\w*Loss(?:Function)?|LPPool\dd)$"
)
_CONTAINERS = ("Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict")
# Of these torchvision 0.28 documents and builds all nets of a family alike: their parts with parameters, in order.
_KNOWN = (
    (re.compile(r"^(wide_)?resne[xt]t?\d+"), ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")),
    (
        re.compile(r"^(alexnet|vgg|densenet|mobilenet|efficientnet|convnext|squeezenet|mnasnet)"),
        ("features", "classifier"),
    ),
    (re.compile(r"^vit_"), ("class_token", "conv_proj", "encoder", "heads")),
    (re.compile(r"^swin_"), ("features", "norm", "head")),
)
_PLAIN_FORMS = (".weight", ".bias")
_DEEPEST = 3


def has_parameters(value: Value | None, walk: ModuleWalk, depth: int = 0) -> bool | None:
    """Whether a part of a model has parameters; ``None`` where that cannot be told."""
    if value is None:
        return None
    if value.kind == "parameter":
        return True
    if value.kind != "module" or depth > _DEEPEST:
        return None
    name = value.cls.rpartition(".")[2]
    if value.cls.startswith("torch.nn.") and name not in _CONTAINERS:
        return False if _WITHOUT.match(name) else None if name == "Module" else True
    if name in _CONTAINERS:
        answers = [has_parameters(item, walk, depth + 1) for item in value.items]
        return True if True in answers else None if None in answers or not answers else False
    if value.maker:
        return True
    parts = parts_of(value, walk, depth + 1)
    if parts is None:
        return None
    return True if parts else None


def parts_of(value: Value, walk: ModuleWalk, depth: int = 0) -> dict[str, Value] | None:
    """The parts of a model that surely have parameters, by name; ``None`` where it is not known what it has."""
    if value.maker.startswith(("torchvision.models.", "torchvision.models.resnet.")):
        maker = value.maker.partition(":")[0].rpartition(".")[2]
        known = next((parts for pattern, parts in _KNOWN if pattern.match(maker)), None)
        return {part: Value("module", path=part) for part in known} if known is not None else None
    if not value.cls or is_module_class(value.cls):
        return None
    ancestry = walk.ancestry(value.cls)
    if not ancestry:
        return None
    for each, owner in ancestry:
        for base in each.bases(owner):
            if not is_module_class(base) and each.find(base) is None and base != "builtins.object":
                return None
    parts: dict[str, Value] = {}
    for each, owner in ancestry:
        for name in [f.name for f in each.functions.values() if f.owner == owner.name]:
            each.function(name)
        for name, attribute in owner.attributes.items():
            if name not in parts and has_parameters(attribute, each, depth) and is_used(each, owner, name):
                parts[name] = attribute
    return parts


def is_used(walk: ModuleWalk, owner: Class, name: str) -> bool:
    """Whether a method of a class, besides ``__init__``, reads an attribute."""
    for statement in owner.node.body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)) and statement.name != "__init__":
            for node in ast.walk(statement):
                if (
                    isinstance(node, ast.Attribute)
                    and node.attr == name
                    and isinstance(node.ctx, ast.Load)
                    and isinstance(node.value, ast.Name)
                    and not _is_only_listed(walk, statement, node)
                ):
                    return True
    return False


def _is_only_listed(walk: ModuleWalk, function: ast.FunctionDef | ast.AsyncFunctionDef, node: ast.Attribute) -> bool:
    """Whether it is read to hand it to an optimizer or to freeze it, which says nothing of the forward pass."""
    return bool(re.search(r"optim|param|freeze", function.name)) and id(node) in walk.values


def names_of(part: str, value: Value, walk: ModuleWalk, depth: int = 0) -> tuple[str, ...]:
    """Names that parameters of a part have in ``named_parameters()``: some of them, to try a test on.

    Example:
        >>> names_of("fc", Value("module", "torch.nn.Linear"), None)
        ('fc.weight', 'fc.bias')
    """
    if value.kind == "parameter":
        return (part,)
    name = value.cls.rpartition(".")[2]
    if value.cls.startswith("torch.nn.") and name not in _CONTAINERS:
        return tuple(part + form for form in _PLAIN_FORMS)
    if name == "Sequential" and value.items:
        with_some = [i for i, item in enumerate(value.items) if has_parameters(item, walk, depth)]
        return tuple(f"{part}.{i}{form}" for i in with_some for form in _PLAIN_FORMS)
    if (value.cls or value.maker) and depth < _DEEPEST:
        inner = parts_of(value, walk, depth + 1) or {}
        found = [n for each, v in inner.items() for n in names_of(f"{part}.{each}", v, walk, depth + 1)]
        if found:
            return tuple(found)
    if not value.cls and not value.maker and part.rpartition(".")[2] in {"conv1", "bn1", "fc"}:
        return tuple(part + form for form in _PLAIN_FORMS)
    return tuple(f"{part}.0{form}" for form in _PLAIN_FORMS)
