"""Models by name and their classifiers, and what is said when there is no such model or classifier."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn

from frostline.compat import import_torchvision
from frostline.errors import ModelError
from frostline.finetune.models import BuiltModel, build_model, check_width, split_head

pytestmark = pytest.mark.filterwarnings("ignore::frostline.errors.TorchvisionWithoutOperators")


def build(name: str, **options: object) -> BuiltModel:
    return build_model(name, **{"num_classes": 2, "pretrained": False, **options})


def refusal(name: str, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        build(name, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a module into the working directory; give its name."""
    monkeypatch.chdir(tmp_path)
    names: list[str] = []

    def write(source: str) -> str:
        names.append(f"my_models_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(textwrap.dedent(source))
        return names[-1]

    before = list(sys.path)
    yield write
    assert sys.path == before
    for name in names:
        sys.modules.pop(name, None)


SMALL = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, num_classes=7):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3)
            self.norm = nn.BatchNorm2d(6)
            self.gate = nn.Linear(6, 6)
            self.out = nn.Linear(6, num_classes)
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            x = self.norm(self.stem(x)).mean((2, 3))
            return self.out(self.drop(x * self.gate(x)))
"""

# Where classifiers are


@pytest.mark.parametrize(
    ("name", "path", "width"),
    [
        ("timm/resnet18", "fc", 512),
        ("timm/resnet18.a1_in1k", "fc", 512),
        ("timm/convnext_atto", "head.fc", 320),
        ("timm/vit_tiny_patch16_224", "head", 192),
        ("timm/mobilenetv3_small_050", "classifier", 1024),
        ("torchvision/resnet18", "fc", 512),
        ("torchvision/mobilenet_v3_small", "classifier.3", 1024),
        ("torchvision/swin_t", "head", 768),
        ("torchvision/vit_b_16", "heads.head", 768),
    ],
)
def test_the_classifier_is_found_and_the_trunk_gives_its_features(name: str, path: str, width: int):
    built = build(name)
    assert (built.head_path, built.in_features, built.image_size) == (path, width, (224, 224))
    assert built.model.get_submodule(path).out_features == 1000  # its own, though two were asked for
    trunk, head = split_head(built)
    check_width(trunk, head, torch.zeros(1, 3, 224, 224))


def test_trunk_and_head_together_are_the_model():
    built = build("timm/resnet18")
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = built.model.eval()(image)
        trunk, head = split_head(built)
        assert trunk is built.model
        assert isinstance(trunk.fc, nn.Identity)
        assert not trunk.fc.training
        assert torch.equal(head(trunk(image)), whole)


def test_timm_says_how_its_images_are_normalized():
    built = build("timm/vit_tiny_patch16_224")
    assert (built.mean, built.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert built.source == "timm/vit_tiny_patch16_224, random weights"


def test_grey_images():
    built = build("timm/resnet18", in_chans=1)
    assert built.model.conv1.in_channels == 1
    assert built.mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)
    assert "takes images with 3 channels, asked for 1" in refusal("torchvision/resnet18", in_chans=1)


def test_a_timm_model_without_a_classifier_gets_one():
    built = build("timm/vit_small_patch14_dinov2", num_classes=5)
    assert built.model.get_submodule(built.head_path).out_features == 5
    assert built.image_size == (518, 518)


def test_the_head_can_be_named(module):
    name = module(SMALL)
    assert build(f"{name}:Net", head="gate").head_path == "gate"


# What is refused


def test_an_unknown_model_names_the_nearest():
    assert "nearest names: resnet18" in refusal("timm/resnet1818")
    message = refusal("torchvision/resnt50")
    assert message.startswith("no model 'resnt50' in torchvision\n  nearest names: resnet50")
    assert "fix: torchvision/resnet50" in message
    assert "no model 'resnet18.of_my_own' in timm\n  nearest names: resnet18" in refusal("timm/resnet18.of_my_own")
    assert "no model" in refusal("torchvision/fcn_resnet50")  # a segmentation model
    assert "no model" in refusal("timm/hf-hub:someone/something")


def test_unknown_and_missing_prefixes():
    assert "unknown prefix 'hub/'" in refusal("hub/resnet18")
    message = refusal("resnet18")
    assert "no prefix" in message
    assert "fix: timm/resnet18" in message


def test_a_file_in_place_of_a_model_is_not_taken_for_a_name(tmp_path):
    weights = tmp_path / "last.safetensors"
    weights.touch()
    assert "fix: the name of the model; a file or folder of weights is loaded into it" in refusal(str(weights))


def test_models_with_several_classifiers_or_another_kind():
    assert "has 2 classifiers: head, head_dist" in refusal("timm/deit_tiny_distilled_patch16_224")
    assert "auxiliary classifiers" in refusal("torchvision/googlenet")
    message = refusal("timm/dpn48b")
    assert "the head 'classifier' of timm/dpn48b must be a Linear" in message
    assert "found: a Conv2d" in message
    assert "has no Linear classifier" in refusal("torchvision/squeezenet1_1")


def test_a_head_that_is_no_linear_or_does_not_exist():
    message = refusal("timm/resnet18", head="layer4")
    assert message == (
        "the head 'layer4' of timm/resnet18 must be a Linear layer inside the model\n"
        "  found: a Sequential\n"
        "  fix: --head NAME; it has the Linear layers fc"
    )
    message = refusal("timm/resnet18", head="layer4.0.conv3")
    assert message.startswith("timm/resnet18 has no module 'layer4.0.conv3'\n  nearest paths: layer4.0.conv2")


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch):
    import_torchvision()
    import timm

    def offline(*arguments: object, **options: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(import_torchvision("models._api"), "load_state_dict_from_url", offline)
    for name in ("timm/resnet18", "torchvision/resnet18"):
        message = refusal(name, pretrained=True)
        assert message.startswith(f"the pretrained weights of {name} could not be fetched\n  found: URLError: ")
        assert "fix: --init CHECKPOINT with a file you have, or leave out --pretrained" in message


def test_pretrained_weights_keep_their_classifier_and_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch):
    models = import_torchvision("models")
    import timm

    own = models.resnet18().state_dict()
    monkeypatch.setattr(import_torchvision("models._api"), "load_state_dict_from_url", lambda *_, **options: own)
    built = build("torchvision/resnet18", pretrained=True)
    assert built.source == "torchvision/resnet18, pretrained IMAGENET1K_V1"
    assert (built.image_size, built.mean, built.std) == ((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.equal(built.model.fc.weight, own["fc.weight"])

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    assert build("timm/resnet18", pretrained=True).source == "timm/resnet18, pretrained a1_in1k"
    message = "timm/vit_small_patch14_dinov2, pretrained lvd142m, with a new classifier"
    assert build("timm/vit_small_patch14_dinov2", pretrained=True).source == message


def test_nothing_is_fetched_unless_asked_for(monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    build("timm/resnet18")
    build("torchvision/resnet18")


# Factories


def test_a_factory_in_the_working_directory_is_told_the_number_of_classes(module):
    name = module(SMALL)
    built = build(f"{name}:Net", num_classes=4)
    assert built.head_path == "out"
    assert built.model.out.out_features == 4
    trunk, head = split_head(built)
    check_width(trunk, head, torch.zeros(2, 3, 8, 8))


def test_a_factory_that_takes_nothing_and_one_that_takes_anything(module):
    name = module(
        SMALL + "\n    def plain():\n        return Net()\n\n    def any(**options):\n        return Net(**options)\n"
    )
    assert build(f"{name}:plain").model.out.out_features == 7
    assert build(f"{name}:any").model.out.out_features == 2


def test_factories_that_cannot_be_found_or_called(module):
    name = module(SMALL + "\n    model = Net()\n    number = 3\n    def build():\n        return Net()\n")
    assert "no module 'nowhere' for the model 'nowhere.at:all'" in refusal("nowhere.at:all")
    message = refusal(f"{name}:bild")
    assert f"the module '{name}' has no 'bild'" in message
    assert "nearest names: build" in message
    assert f"{name}:number is a int, which cannot be called" in refusal(f"{name}:number")
    assert "is a model (Net), not a factory" in refusal(f"{name}:model")
    assert "one side of the colon is empty" in refusal(f"{name}:")
    assert "says nothing to the factory" in refusal(f"{name}:build", pretrained=True)


def test_factories_that_fail(module):
    name = module("def fail():\n    raise KeyError('depth')\n\ndef three():\n    return 3\n")
    assert f"the factory failed: {name}:fail()\n  found: KeyError: 'depth'" in refusal(f"{name}:fail")
    assert "returned a int" in refusal(f"{name}:three")
    broken = module("import a_package_nobody_has\n")
    assert f"the module '{broken}' cannot be imported\n  found: ModuleNotFoundError" in refusal(f"{broken}:build")


def test_heads_that_a_factory_cannot_give(module):
    name = module(
        SMALL
        + """
    def alone():
        return nn.Linear(3, 2)

    def lazy():
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(2))

    def fixed(num_classes):
        return nn.Sequential(nn.Linear(3, 4))
    """
    )
    assert "no Linear inside the model" in refusal(f"{name}:alone")
    assert "which leaves no trunk" in refusal(f"{name}:alone", head="")
    assert "a LazyLinear whose width is not known yet" in refusal(f"{name}:lazy")
    message = refusal(f"{name}:fixed")
    assert "no Linear inside the model with 2 outputs\n  found: the Linear layers 0\n  fix: --head NAME" in message
    assert build(f"{name}:fixed", head="0").head_path == "0"


def test_attentions_own_projection_is_no_head(module):
    name = module(
        """
        from torch import nn

        def build():
            return nn.Sequential(nn.Linear(8, 3), nn.MultiheadAttention(8, 2))
        """
    )
    assert build(f"{name}:build").head_path == "0"


# Widths


class Noisy(nn.Module):
    """Draws, counts in every mode, and gives two features less than it is asked for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("calls", torch.zeros(()))
        self.norm = nn.BatchNorm1d(width)
        self.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.norm(torch.rand(len(x), self.width))


def test_checking_a_width_leaves_state_modes_and_random_numbers_alone():
    trunk, head = Noisy(6), nn.Linear(6, 2)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}, torch.random.get_rng_state()
    check_width(trunk, head, torch.zeros(3, 6))
    assert all(torch.equal(value, before[0][name]) for name, value in trunk.state_dict().items())
    assert torch.equal(before[1], torch.random.get_rng_state())
    assert [module.training for module in trunk.modules()] == [True, False]


def test_a_head_that_does_not_fit_names_both_widths():
    with pytest.raises(ModelError) as caught:
        check_width(Noisy(6), nn.Linear(8, 2), torch.zeros(3, 6))
    assert str(caught.value).startswith(
        "the head does not fit the trunk\n  expected: 8 features for each of 3 inputs\n  found: 6 features\n  fix: "
    )


@pytest.mark.parametrize(
    ("trunk", "found"),
    [(nn.Identity(), r"found: a tensor of shape \(3, 6, 1\)"), (nn.LSTM(1, 8), "found: a tuple")],
)
def test_features_that_are_no_table(trunk: nn.Module, found: str):
    with pytest.raises(ModelError, match=found):
        check_width(trunk, nn.Linear(8, 2), torch.zeros(3, 6, 1))


def test_the_wrong_linear_as_head_is_noticed(module):
    name = module(SMALL)
    trunk, head = split_head(build(f"{name}:Net", head="gate"))
    with pytest.raises(ModelError, match="found: 2 features"):
        check_width(trunk, head, torch.zeros(2, 3, 8, 8))


def test_a_trunk_that_cannot_run():
    with pytest.raises(ModelError, match=r"cannot run on a batch of shape \(1, 3\)[\s\S]*found: RuntimeError"):
        check_width(nn.Linear(4, 8), nn.Linear(8, 2), torch.zeros(1, 3))
