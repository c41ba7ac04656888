"""N306: the input does not look like what the pretrained statistics expect."""

from __future__ import annotations

import pytest

CODE = "N306"
HEAD = """
import clip
import timm
import torchvision
from torchvision import transforms as T
from torchvision.transforms import v2
import transformers
"""
RESNET = 'model = torchvision.models.resnet18(weights="DEFAULT")\n'
VIT = 'model = timm.create_model("vit_base_patch16_224", pretrained=True)\n'
IMAGENET = "([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])"
HALF = "((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))"
CLIP = "((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))"
CIFAR = "((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))"
MARK = "  # <- N306\n"

TRUE = {
    "0.5 for a resnet": f"{HEAD}{RESNET}t = T.Normalize{HALF}{MARK}",
    "0.5 times three": f"{HEAD}{RESNET}t = T.Normalize([0.5] * 3, [0.5] * 3){MARK}",
    "ImageNet for a vit": f"{HEAD}{VIT}t = T.Compose([T.ToTensor(), T.Normalize{IMAGENET}]){MARK}",
    "ImageNet for CLIP": f'{HEAD}model, _ = clip.load("ViT-B/32")\nt = v2.Normalize{IMAGENET}{MARK}',
    "CLIP for a resnet": f"{HEAD}{RESNET}t = T.Normalize{CLIP}{MARK}",
    "transformers": (
        f'{HEAD}net = transformers.ViTModel.from_pretrained("google/vit-base-patch16-224")\n'
        f"t = T.Normalize{IMAGENET}{MARK}"
    ),
    "through names": (
        f"{HEAD}MEAN = (0.5, 0.5, 0.5)\nSTD = [0.5, 0.5, 0.5]\n"
        f"def data():\n    return T.Normalize(mean=MEAN, std=STD){MARK}"
        "def make():\n    return torchvision.models.resnet50(pretrained=True)\n"
    ),
    "of a data set": f"{HEAD}{RESNET}t = T.Normalize{CIFAR}{MARK}",
    "swapped": f"{HEAD}t = T.Normalize([0.229, 0.224, 0.225], [0.485, 0.456, 0.406]){MARK}",
    "in 0 to 255": (
        f"{HEAD}t = T.Compose([T.ToTensor(), T.Normalize([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])]){MARK}"
    ),
    "functional": f"{HEAD}{RESNET}x = T.functional.normalize(x, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)){MARK}",
    "a constant of timm": (
        f"{HEAD}from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD\n"
        f"{VIT}t = T.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD){MARK}"
    ),
}
SILENT = {
    "ImageNet for a resnet": f"{HEAD}{RESNET}t = T.Normalize{IMAGENET}\n",
    "rounded": f"{HEAD}{RESNET}t = T.Normalize([0.485, 0.456, 0.406], [0.23, 0.224, 0.225])\n",
    "0.5 for a vit": f"{HEAD}{VIT}t = T.Normalize{HALF}\n",
    "from scratch": f"{HEAD}model = torchvision.models.resnet18()\nt = T.Normalize{HALF}\n",
    "no weights": f"{HEAD}model = torchvision.models.resnet18(weights=None)\nt = T.Normalize{HALF}\n",
    "perhaps weights": f"{HEAD}model = torchvision.models.resnet18(weights=args.weights)\nt = T.Normalize{HALF}\n",
    "no model": f"{HEAD}t = T.Normalize{HALF}\n",
    "one of two fits": f"{HEAD}{RESNET}t = T.Normalize{HALF}\nu = T.Normalize{IMAGENET}\n",
    "two recipes": f"{HEAD}{RESNET}{VIT}t = T.Normalize{CLIP}\n",
    "unknown figures": f"{HEAD}{RESNET}t = T.Normalize((0.1, 0.2, 0.3), (0.3, 0.3, 0.3))\n",
    "unknown weights": f'{HEAD}m = timm.create_model("mixnet_s", pretrained=True)\nt = T.Normalize{HALF}\n',
    "detection": (
        f'{HEAD}m = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights="DEFAULT")\nt = T.Normalize{HALF}\n'
    ),
    "grey": f"{HEAD}{RESNET}t = T.Normalize((0.5,), (0.5,))\n",
    "a net for a loss": (
        f"{HEAD}class VGGLoss(nn.Module):\n    def __init__(self):\n"
        f"        self.vgg = torchvision.models.vgg16(pretrained=True)\nt = T.Normalize{HALF}\n"
    ),
    "0 to 255 as it is": (
        f"{HEAD}t = T.Compose([T.PILToTensor(), T.Normalize([123.675, 116.28, 103.53], [58, 57, 57])])\n"
    ),
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


@pytest.mark.parametrize(
    ("name", "severity", "inferred"),
    [("0.5 for a resnet", "warning", True), ("of a data set", "info", True), ("swapped", "error", False)],
)
def test_how_bad_it_is(name, severity, inferred, find):
    (found,) = find(TRUE[name], CODE)
    assert (found.finding.severity.value, found.finding.inferred) == (severity, inferred)


def test_what_it_says(find):
    (found,) = find(TRUE["0.5 for a resnet"], CODE)
    assert found.finding.message == (
        "standardized as 0.5, where the weights of line 8 were trained with ImageNet: "
        "mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)"
    )
    assert found.finding.evidence == (
        'line 8: torchvision.models.resnet18(weights="DEFAULT")\nhere: mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)'
    )
