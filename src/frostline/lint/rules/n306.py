"""N306: the input does not look like what the pretrained statistics expect."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.input_recipes import IMAGENET, NAMED, Recipe, expected, known
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import Value

# Where mean and std stand.
_NORMALIZES = {
    "torchvision.transforms.Normalize": 0,
    "torchvision.transforms.transforms.Normalize": 0,
    "torchvision.transforms.v2.Normalize": 0,
    "torchvision.transforms.functional.normalize": 1,
    "torchvision.transforms.v2.functional.normalize": 1,
    "albumentations.Normalize": 0,
    "kornia.augmentation.Normalize": 0,
}
_TO_UNIT = frozenset({"ToTensor", "ToDtype", "to_tensor", "ConvertImageDtype"})
# A net that is loaded to compare pictures standardizes its input on its own.
_COMPARES = re.compile(r"loss|percept|lpips|vgg|inception|(^|[_.])fid|metric", re.I)
_TOP = 255.0


@dataclass(frozen=True)
class _Scaling:
    """A call that standardizes, with its figures."""

    call: ast.Call
    mean: tuple[float, ...]
    std: tuple[float, ...]


def check(view: FileView) -> Iterator[Violation]:
    """Constants of Normalize that are swapped, in 0 to 255, or those of another recipe than the weights of the file."""
    scalings = [found for call in view.nodes(ast.Call) if (found := _scaling(view, call)) is not None]
    if not scalings:
        return
    loads = [
        (call, recipe)
        for call in view.nodes(ast.Call)
        if (recipe := expected(view, call)) is not None and not _COMPARES.search(view.function(call))
    ]
    wanted = {recipe for _, recipe in loads}
    fits = any(known(s.mean, s.std) in wanted for s in scalings)
    for scaling in scalings:
        swapped = known(scaling.std, scaling.mean)
        if swapped is not None and swapped.mean != swapped.std:
            yield _swapped(scaling, swapped)
        elif _is_in_255(scaling) and _is_behind_unit(view, scaling.call):
            yield _too_large(scaling)
        elif len(wanted) == 1 and not fits and not _COMPARES.search(view.function(scaling.call)):
            found = known(scaling.mean, scaling.std)
            if found is not None:
                yield _other(view, scaling, found, *loads[0])


def _swapped(scaling: _Scaling, recipe: Recipe) -> Violation:
    return Violation(
        scaling.call,
        f"mean and std are swapped: {_text(recipe.std)} are the standard deviations of {recipe.name}",
        remedy=f"mean={_text(recipe.mean)}, std={_text(recipe.std)}",
        severity=Severity.ERROR,
    )


def _too_large(scaling: _Scaling) -> Violation:
    return Violation(
        scaling.call,
        f"mean {_text(scaling.mean)} is of pictures in 0 to 255, and these are in 0 to 1",
        evidence=("ToTensor, or what takes its place, divides by 255 before",),
        remedy="divide mean and std by 255",
        severity=Severity.WARNING,
    )


def _other(view: FileView, scaling: _Scaling, found: Recipe, load: ast.Call, wanted: Recipe) -> Violation:
    model = view.text(load).partition("\n")[0]
    return Violation(
        scaling.call,
        f"standardized as {found.name}, where the weights of line {load.lineno} were trained with {wanted.name}: "
        f"mean {_text(wanted.mean)}, std {_text(wanted.std)}",
        evidence=(f"line {load.lineno}: {model[:80]}", f"here: mean {_text(scaling.mean)}, std {_text(scaling.std)}"),
        remedy=f"mean={_text(wanted.mean)}, std={_text(wanted.std)}, or the transforms of the weights",
        # The figures of a data set shift the input by a fraction of a standard deviation.
        severity=Severity.WARNING if found.pretrains else Severity.INFO,
        inferred=True,
    )


def _text(figures: tuple[float, ...]) -> str:
    return f"({', '.join(f'{each:.4g}' for each in figures)})"


def _scaling(view: FileView, call: ast.Call) -> _Scaling | None:
    place = _NORMALIZES.get(view.name(call.func))
    if place is None or any(isinstance(each, ast.Starred) for each in call.args):
        return None
    mean, std = _given(call, "mean", place), _given(call, "std", place + 1)
    figures = _figures(view, mean), _figures(view, std)
    return _Scaling(call, *figures) if len(figures[0]) == len(figures[1]) == 3 else None


def _given(call: ast.Call, name: str, place: int) -> ast.expr | None:
    named = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
    return named or (call.args[place] if len(call.args) > place else None)


def _figures(view: FileView, node: ast.expr | None) -> tuple[float, ...]:
    """Three numbers, written here, under a name or as a constant of a library; empty for anything else."""
    if node is None:
        return ()
    if isinstance(node, (ast.List, ast.Tuple)):
        return _numbers([_number(each) for each in node.elts])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and isinstance(node.right, ast.Constant):
        times = node.right.value
        one = _figures(view, node.left)
        return one * times if isinstance(times, int) and 0 < times <= 3 else ()
    name = view.name(node).rpartition(".")[2]
    if name in NAMED:
        return NAMED[name]
    value = view.value(node)
    if value is not None and value.kind in {"list", "tuple"}:
        return _numbers([_constant(item) for item in value.items])
    return ()


def _number(node: ast.expr) -> float | None:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        above, below = _number(node.left), _number(node.right)
        return above / below if above is not None and below else None
    return float(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) else None


def _constant(item: Value | None) -> float | None:
    return float(item.const) if item is not None and isinstance(item.const, (int, float)) else None


def _numbers(found: list[float | None]) -> tuple[float, ...]:
    known_ones = tuple(each for each in found if each is not None)
    return known_ones if len(known_ones) == len(found) else ()


def _is_in_255(scaling: _Scaling) -> bool:
    scaled = tuple(each / _TOP for each in scaling.mean)
    return all(abs(a - b) < 0.01 for a, b in zip(scaled, IMAGENET.mean, strict=True))


def _is_behind_unit(view: FileView, call: ast.Call) -> bool:
    """Whether the same list of transforms divides by 255 before."""
    above = view.parent(call)
    if not isinstance(above, (ast.List, ast.Tuple)) or not view.name(call.func).startswith("torchvision."):
        return False
    before = above.elts[: above.elts.index(call)]
    return any(isinstance(each, ast.Call) and _last(each.func) in _TO_UNIT for each in before)


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


RULE = LintRule(
    code="N306",
    what="Compares the constants of `Normalize` with those that the pretrained weights of the same file were "
    "trained with, for weights of torchvision, timm, CLIP and transformers whose recipe is known; and looks for mean "
    "and std that are swapped, or in 0 to 255 behind `ToTensor`.",
    why="A pretrained model expects its input scaled as in its training. Pictures in another scale still run: "
    "features are garbage, the first epochs are spent on unlearning them, and a frozen trunk never recovers.",
    example='model = torchvision.models.resnet18(weights="DEFAULT")\n'
    "scale = torchvision.transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))",
    instead='model = torchvision.models.resnet18(weights="DEFAULT")\n'
    "scale = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))",
    remedy="Use the transforms of the weights, or their constants.",
    safety=Safety.MANUAL,
    how_safe="manual: which of the two was meant is not known",
    false_alarms="A file with two models and one `Normalize`, which is that of the other. Where one `Normalize` "
    "of the file fits, or weights of two recipes are loaded, nothing is said; nets that are loaded inside of losses "
    "and metrics do not count. Constants that are not known are not judged.",
    source="open_clip#204, mapping-challenge#77, FOA#2",
    triggers=("ormalize(",),
    check=check,
)
