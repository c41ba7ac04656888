"""How the input of pretrained models was standardized, and which calls load one."""

from __future__ import annotations

import ast

import pytest

from frostline.lint.file_view import FileView
from frostline.lint.input_recipes import CLIP, HALF, IMAGENET, RECIPES, Recipe, expected, known
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.parsing import parse
from frostline.lint.project import Project
from frostline.lint.source import Source, source_from_bytes


def recipe_of(text: str) -> Recipe | None:
    """The recipe of the call that a text ends with."""
    source = source_from_bytes(f"import clip, open_clip, transformers\n{text}".encode(), "train.py")
    assert isinstance(source, Source)
    tree = parse(source)
    assert isinstance(tree, ast.Module)
    view = FileView(ModuleWalk(source, tree, "train", Project()))
    last = tree.body[-1]
    assert isinstance(last, ast.Expr)
    assert isinstance(last.value, ast.Call)
    return expected(view, last.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_known_by_its_figures_and_by_no_others(recipe):
    assert known(recipe.mean, recipe.std) is recipe
    assert known(recipe.std, tuple(0.9 * each for each in recipe.mean)) is None


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ('torchvision.models.resnet18(weights="DEFAULT")', IMAGENET),
        ("torchvision.models.resnet18(weights=torchvision.models.ResNet18_Weights.DEFAULT)", IMAGENET),
        ("torchvision.models.resnet18(pretrained=True)", IMAGENET),
        ("torchvision.models.resnet18(True)", IMAGENET),
        ('torchvision.models.get_model("resnet18", weights="DEFAULT")', IMAGENET),
        ('timm.create_model("resnet50", pretrained=True)', IMAGENET),
        ('timm.create_model("resnet50.a1_in1k", True)', IMAGENET),
        ('timm.create_model("vit_base_patch16_224.augreg_in21k", pretrained=True)', HALF),
        ('timm.create_model("vit_base_patch16_clip_224.openai", pretrained=True)', CLIP),
        ('clip.load("ViT-B/32", device=device)', CLIP),
        ('open_clip.create_model_and_transforms("ViT-B-32", pretrained="openai")', CLIP),
        ('transformers.ViTModel.from_pretrained("google/vit-base-patch16-224")', HALF),
        ('transformers.AutoModel.from_pretrained("openai/clip-vit-base-patch32")', CLIP),
        ("torchvision.models.resnet18()", None),
        ("torchvision.models.resnet18(weights=None)", None),
        ("torchvision.models.resnet18(weights=weights)", None),
        ("torchvision.models.vgg16(weights=torchvision.models.VGG16_Weights.IMAGENET1K_FEATURES)", None),
        ('torchvision.models.get_model("resnet18")', None),
        ('torchvision.models.detection.ssd300_vgg16(weights="DEFAULT")', None),
        ('timm.create_model("resnet50")', None),
        ('timm.create_model("vit_base_patch16_224.dino", pretrained=True)', None),
        ("timm.create_model(args.model, pretrained=True)", None),
        ('open_clip.create_model("ViT-B-16-SigLIP", pretrained="webli")', None),
        ('transformers.CLIPProcessor.from_pretrained("openai/clip-vit-base-patch32")', None),
        ('transformers.BertModel.from_pretrained("bert-base-uncased")', None),
    ],
)
def test_what_a_call_loads(text, recipe):
    assert recipe_of(text) is recipe
