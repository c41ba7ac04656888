"""How the input of pretrained models was standardized, as data, and which calls load such a model."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from frostline.lint.file_view import FileView


@dataclass(frozen=True)
class Recipe:
    """Mean and standard deviation of the three channels of a picture in 0 to 1.

    Attributes:
        name: what they are the figures of.
        mean: of red, green and blue.
        std: likewise.
        pretrains: models were trained with it that people load; no: it only describes a data set.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pretrains: bool = True


# Sources: torchvision.transforms._presets.ImageClassification (0.28); openai/CLIP, clip.py; timm.data.constants (1.0);
# transformers.image_utils (5). The figures of data sets are those in wide use for their training parts.
IMAGENET = Recipe("ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = Recipe("CLIP", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = Recipe("0.5", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RECIPES = (
    IMAGENET,
    CLIP,
    HALF,
    Recipe("CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), False),
    Recipe("CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), False),
    Recipe("CIFAR-100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), False),
    Recipe("Kinetics-400", (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
)
# People round to three digits; the recipes differ by more in one of the two.
_NEAR = 0.003
# Names under which libraries keep the figures.
NAMED = {
    "IMAGENET_DEFAULT_MEAN": IMAGENET.mean,
    "IMAGENET_DEFAULT_STD": IMAGENET.std,
    "IMAGENET_INCEPTION_MEAN": HALF.mean,
    "IMAGENET_INCEPTION_STD": HALF.std,
    "IMAGENET_STANDARD_MEAN": HALF.mean,
    "IMAGENET_STANDARD_STD": HALF.std,
    "OPENAI_CLIP_MEAN": CLIP.mean,
    "OPENAI_CLIP_STD": CLIP.std,
}

# Which recipe the weights of a name were trained with. Names of which some weights differ are not here.
_TIMM = (
    (re.compile(r"^(resnet\d+[dst]?|resnext\d+\w*|densenet\d+|vgg\d+\w*|swin_\w+|deit3?_\w+|convnext_\w+)$"), IMAGENET),
    (re.compile(r"^(resnet\d+[dst]?|convnext_\w+)\.(a\d|tv|fb|d_?in12k|in12k)\w*$"), IMAGENET),
    (re.compile(r"^vit_(tiny|small|base|large)_patch\d+_\d+(\.augreg\w*)?$"), HALF),
    (re.compile(r"^(inception_v4|inception_resnet_v2|xception)(\.\w+)?$"), HALF),
    (re.compile(r"^vit_\w+_clip_\d+\.openai$"), CLIP),
)
_HUB = (
    ("openai/clip-", CLIP),
    ("google/vit-", HALF),
    ("google/siglip-", HALF),
    ("facebook/deit-", IMAGENET),
    ("facebook/dinov2-", IMAGENET),
    ("facebook/convnext-", IMAGENET),
    ("microsoft/resnet-", IMAGENET),
    ("microsoft/swin-", IMAGENET),
)
_CLIP_WEIGHTS = re.compile(r"^(openai|laion400m\w*)$")
# Parts of torchvision.models whose nets standardize their input themselves, or otherwise than pictures.
_OTHERWISE = re.compile(r"\.(detection|optical_flow|video|quantization|segmentation)\.")


def known(mean: tuple[float, ...], std: tuple[float, ...]) -> Recipe | None:
    """The recipe that has these figures.

    Example:
        >>> known((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)).name
        'CLIP'
        >>> known((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    """
    return next((r for r in RECIPES if _near(r.mean, mean) and _near(r.std, std)), None)


def _near(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return len(one) == len(other) and all(abs(a - b) <= _NEAR for a, b in zip(one, other, strict=True))


def expected(view: FileView, call: ast.Call) -> Recipe | None:
    """The recipe of the weights that a call loads; ``None`` where it loads none, or none that is known here."""
    name = view.name(call.func)
    if name.startswith("torchvision.models.") and name.rpartition(".")[2][:1].islower():
        return IMAGENET if not _OTHERWISE.search(name) and _is_pretrained(view, call, name) else None
    given = _literal(call, 0)
    if name == "timm.create_model":
        return next((recipe for pattern, recipe in _TIMM if pattern.match(given)), None) if _flag(call) else None
    if name == "clip.load":
        return CLIP
    if name.startswith("open_clip.create_model"):
        weights = next((k.value for k in call.keywords if k.arg == "pretrained"), None)
        text = weights.value if isinstance(weights, ast.Constant) else _literal(call, 1)
        return CLIP if isinstance(text, str) and _CLIP_WEIGHTS.match(text) else None
    if name.startswith("transformers.") and name.endswith(".from_pretrained") and "Processor" not in name:
        return next((recipe for prefix, recipe in _HUB if given.startswith(prefix)), None)
    return None


def _literal(call: ast.Call, place: int) -> str:
    node = call.args[place] if len(call.args) > place else None
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _flag(call: ast.Call) -> bool:
    given = next(
        (k.value for k in call.keywords if k.arg == "pretrained"), call.args[1] if len(call.args) > 1 else None
    )
    return isinstance(given, ast.Constant) and given.value is True


def _is_pretrained(view: FileView, call: ast.Call, name: str) -> bool:
    weights = next((k.value for k in call.keywords if k.arg == "weights"), None)
    if weights is not None:
        # The weights for features of vgg16 came from elsewhere, in another range.
        is_text = isinstance(weights, ast.Constant) and isinstance(weights.value, str)
        written = is_text or "Weights" in view.text(weights)
        return written and "FEATURES" not in view.text(weights)
    if name == "torchvision.models.get_model":
        return False
    given = next((k.value for k in call.keywords if k.arg == "pretrained"), call.args[0] if call.args else None)
    return isinstance(given, ast.Constant) and given.value is True
