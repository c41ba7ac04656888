"""Which layers a module has that run differently in train mode, as far as source tells: statistics and dropout."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frostline.lint.scopes import Class
from frostline.lint.torch_names import BATCH_NORMS, DROPOUTS, is_module_class
from frostline.lint.values import Value

if TYPE_CHECKING:
    from frostline.lint.events import Flow
    from frostline.lint.file_view import FileView
    from frostline.lint.module_walk import ModuleWalk


@dataclass(frozen=True)
class Layers:
    """What a module has: ``True``, surely not ``False``, or unknown ``None``.

    Attributes:
        norms: layers with running statistics.
        drops: dropout with a rate above 0.
    """

    norms: bool | None = None
    drops: bool | None = None

    def with_(self, other: Layers) -> Layers:
        """What two modules have together.

        Example:
            >>> Layers(True, False).with_(Layers(None, False))
            Layers(norms=True, drops=False)
        """
        return Layers(_either(self.norms, other.norms), _either(self.drops, other.drops))


def _either(one: bool | None, other: bool | None) -> bool | None:
    return True if one or other else None if one is None or other is None else False


NONE = Layers(False, False)
UNKNOWN = Layers(None, None)

# Nets by the names of their makers, as torchvision 0.28, timm 1.0 and transformers 5 document and build them.
_WITH_NORMS = re.compile(
    r"^(wide_resnet|resnet|resnext|se_?resne|seresne|resnest|res2ne|resnetv2|densenet|googlenet|inception|xception|"
    r"mobilenet|mnasnet|shufflenet|efficientnet|tf_efficientnet|regnet|vgg\d+_bn|ghostnet|hrnet|dla|rexnet|dpn|maxvit|"
    r"levit|fcn_|deeplab|lraspp|r3d_|mc3_|r2plus1d|s3d|cspnet|cspresnet|cspdarknet|darknet|repvgg|nasnet|pnasnet|"
    r"mixnet|fbnet|tinynet|hardcorenas|skresne|ecaresne|gernet|ese_vovnet)",
    re.I,
)
_WITHOUT_NORMS = re.compile(
    r"^(alexnet|vgg\d+$|vgg\d+\.|squeezenet|vit_|deit|swin|convnext|beit|eva|cait|xcit|mixer|gmlp|dinov?2|samvit|"
    r"flexivit|clip_vit|nfnet|dm_nfnet|naflexvit)",
    re.I,
)
_HF_WITH_NORMS = re.compile(
    r"^(ResNet|RegNet|MobileNet|EfficientNet|EfficientFormer|MobileViT|Levit|Cvt|VAN|Segformer|Conditional|Deformable|"
    r"YolosFor|RTDetr|RtDetr|TableTransformer|Speech|Wav2Vec2Conformer|FastSpeech|Univnet|BiT|Timm|Mask2Former|MaskFormer|"
    r"UperNet|Oneformer|AutoBackbone|AutoModelFor(Image|Object|Semantic|Instance|Depth|Universal|Audio|Video))"
)
# Parts of those nets in which their statistics are.
_STEMS = re.compile(r"^(layer\d|features|bn\d|blocks|stem|body|backbone|stages|trunk)$")
_PLAIN = re.compile(r"^(conv\d*|fc\d*|classifier|head|avgpool|maxpool|relu|conv_stem|last_linear|lm_head)$")
_TORCH_DROPS = re.compile(r"^Transformer\w*$")


class LayerBook:
    """Knows what is in the modules of a file.

    Args:
        view: the file.
    """

    def __init__(self, view: FileView) -> None:
        self._view = view
        self._known: dict[str, Layers] = {}
        self._asking: set[str] = set()

    def of_path(self, flow: Flow, path: str, before: int | None = None) -> Layers:
        """What is in the module that has a path in a flow, before one of its events."""
        if path in self._asking:
            return UNKNOWN  # a copy that was given the name of what it was made of
        self._asking.add(path)
        try:
            return self._of_path(flow, path, before)
        finally:
            self._asking.discard(path)

    def _of_path(self, flow: Flow, path: str, before: int | None) -> Layers:
        value = self.value_at(flow, path, before)
        if value is not None and (value.cls or value.maker or value.items or value.copy_of):
            return self.of(value, flow)
        # A part of a library's net: what the net surely has not, the part has not.
        head, name = _parted(path)
        above = self.of_path(flow, head, before) if head else UNKNOWN
        norms = above.norms
        if norms:
            norms = True if _STEMS.match(str(name)) else False if _PLAIN.match(str(name)) else None
        return Layers(norms, above.drops and None if above.norms is not False else above.drops)

    def value_at(self, flow: Flow, path: str, before: int | None = None) -> Value | None:
        """What is known of the module at a path: how the flow made it, or what the class that it is a part of says."""
        events = flow.events if before is None else flow.events[:before]
        for index in range(len(events) - 1, -1, -1):
            event = events[index]
            if event.path == path and event.what == "new":
                return event.get("value")
            if event.path == path and event.what == "wrap":
                # What is wrapped was there before; it may have had the same name.
                return event.get("value") or (self.value_at(flow, event.get("of"), index) if event.get("of") else None)
        head, name = _parted(path)
        if head:
            above = self.value_at(flow, head, before)
            if above is None:
                return None
            inside = above.items[0] if above.items else None
            if isinstance(name, str) and inside is not None and isinstance(inside.const, tuple):
                keys: tuple[object, ...] = inside.const  # pyright: ignore[reportUnknownVariableType]
                return inside.items[keys.index(name)] if name in keys else None
            if isinstance(name, int):
                return above.items[name] if -len(above.items) <= name < len(above.items) else None
            return self._view.walk.attribute(above.cls, name) if "." in above.cls else None
        if path == "self" and flow.owner:
            return Value("module", self._view.walk.qualified(flow.owner), path)
        names = self._view.walk.expressions.inner_names.get(flow.name) or self._view.walk.names
        found = names.get(path)
        return found if found is not None and found.kind == "module" else None

    def of(self, value: Value, flow: Flow | None = None) -> Layers:
        """What is in a module, or in a list of modules."""
        if value.kind in {"list", "tuple", "dict"}:
            return self._of_all(value.items, flow)
        if value.kind == "modules" and value.path and flow is not None:
            return self.of_path(flow, value.path)
        if value.copy_of and not value.cls and not value.maker:
            return self.of_path(flow, value.copy_of) if flow is not None else UNKNOWN
        if value.maker and not is_module_class(value.maker.partition(":")[0]):
            return _made_by(value.maker)
        return self._of_class(value.cls, value.items, flow, self._view.walk)

    def _of_all(self, items: tuple[Value | None, ...], flow: Flow | None) -> Layers:
        found = NONE
        for item in items:
            found = found.with_(self.of(item, flow) if item is not None else UNKNOWN)
        return found

    def _of_class(self, cls: str, items: tuple[Value | None, ...], flow: Flow | None, walk: ModuleWalk) -> Layers:
        if not cls:
            return UNKNOWN
        if cls.startswith("torch.nn."):
            if cls.endswith((".Sequential", ".ModuleList", ".ModuleDict")):
                return self._of_all(items, flow) if items else UNKNOWN
            return _of_torch(cls)
        if cls not in self._known:
            self._known[cls] = NONE  # a class that builds itself adds nothing
            self._known[cls] = self._read(walk, cls)
        return self._known[cls]

    def _read(self, walk: ModuleWalk, cls: str) -> Layers:
        """What the methods of a class of the files build, by the calls that stand in them."""
        ancestry = walk.ancestry(cls)
        if not ancestry:
            return UNKNOWN
        found = NONE
        for each, owner in ancestry:
            for base in each.bases(owner):
                if not is_module_class(base) and each.find(base) is None and base != "builtins.object":
                    found = found.with_(_made_by(base))
            found = found.with_(self._built(each, owner))
        return found

    def _built(self, walk: ModuleWalk, owner: Class) -> Layers:
        found = NONE
        for attribute in owner.attributes.values():
            if attribute.kind == "module" and not attribute.cls and not attribute.maker:
                found = found.with_(UNKNOWN)
        for statement in owner.node.body:
            if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)) or statement.name == "forward":
                continue
            walk.function(f"{owner.name}.{statement.name}")
            for node in ast.walk(statement):
                if isinstance(node, ast.Call):
                    found = found.with_(self._of_call(walk, node))
        return found

    def _of_call(self, walk: ModuleWalk, call: ast.Call) -> Layers:
        value = walk.values.get(id(call.func))
        made = walk.values.get(id(call))
        if value is not None and value.kind in {"class", "ref", "function"}:
            cls = value.cls
            if cls in DROPOUTS and _is_zero(call):
                return NONE
            if is_module_class(cls) and cls.startswith("torch.nn."):
                # What is in a container is built by calls of its own.
                return NONE if cls.endswith(_CONTAINERS) else _of_torch(cls)
            known = walk.find(cls)
            if known is not None and isinstance(known[1], Class):
                return self._of_class(cls, (), None, walk) if known[0].is_module(cls) is not False else NONE
            if made is not None and made.kind == "module":
                return self.of(made)
            if value.kind == "function" or cls.startswith(("torch.", "builtins.", "math.", "numpy.")):
                return NONE if made is None or made.kind != "module" else UNKNOWN
            return UNKNOWN if cls.rpartition(".")[2][:1].isupper() or _BUILDERS.search(cls) else NONE
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if isinstance(call.func, ast.Attribute) and value is None and not _BUILDERS.search(name):
            return NONE
        return UNKNOWN if _BUILDERS.search(name) or name[:1].isupper() else NONE


_CONTAINERS = (".Sequential", ".ModuleList", ".ModuleDict", ".Module")
_BUILDERS = re.compile(r"build|create|make|norm|block|layer|backbone|encoder|model|network|from_pretrained|load", re.I)


def _parted(path: str) -> tuple[str, str | int]:
    """A path without its last part, and that part: a name, or an index."""
    if path.endswith("]"):
        head, _, index = path[:-1].rpartition("[")
        return (head, int(index)) if index.lstrip("-").isdigit() else (head, index.strip("'\""))
    head, _, name = path.rpartition(".")
    return head, name


def _of_torch(cls: str) -> Layers:
    name = cls.rpartition(".")[2]
    if cls in BATCH_NORMS:
        return Layers(True, False)
    if cls in DROPOUTS or _TORCH_DROPS.match(name):
        return Layers(False, True)
    return UNKNOWN if name == "Module" else NONE


def _is_zero(call: ast.Call) -> bool:
    rate = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "p"), None)
    return isinstance(rate, ast.Constant) and rate.value == 0


def _made_by(maker: str) -> Layers:
    """What is in a net of a library.

    Example:
        >>> _made_by("torchvision.models.resnet18").norms, _made_by("timm.create_model:vit_base_patch16_224").norms
        (True, False)
        >>> _made_by("transformers.BertModel.from_pretrained:bert-base-uncased")
        Layers(norms=False, drops=True)
    """
    function, _, given = maker.partition(":")
    parts = function.split(".")
    if parts[0] == "transformers":
        cls = next((each for each in parts[1:] if each[:1].isupper()), "")
        return Layers(None, None) if _HF_WITH_NORMS.match(cls) or not cls else Layers(False, True)
    if parts[0] == "diffusers":
        return Layers(False, None)
    if parts[0] == "sentence_transformers":
        return Layers(False, True)
    if parts[0] in {"torchvision", "timm"}:
        name = given if function == "timm.create_model" or function.endswith("get_model") else parts[-1]
        name = name.rpartition("/")[2]
        if "detection" in parts or "optical_flow" in parts:
            return UNKNOWN
        if _WITHOUT_NORMS.match(name):
            return Layers(False, parts[0] == "torchvision" and name.startswith(("alexnet", "vgg", "squeezenet")))
        return Layers(True if _WITH_NORMS.match(name) else None, None)
    if function == "torch.hub.load" and "dino" in given:
        return NONE
    return UNKNOWN
