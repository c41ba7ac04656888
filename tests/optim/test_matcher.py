"""Depths by timm's `group_matcher`, on 49 architectures: against the forward pass, and against timm's own groups."""

from __future__ import annotations

import warnings
from fnmatch import fnmatchcase
from functools import cache

import pytest
import torch
from torch import nn

from frostline.compat import import_torchvision
from frostline.errors import SelectionError
from frostline.optim import depth_of, param_groups
from frostline.optim.matcher import depths_by_matcher
from frostline.state import names

# fmt: off
ARCHITECTURES = (
    "resnet18", "resnetv2_50", "vit_tiny_patch16_224", "deit3_small_patch16_224", "beit_base_patch16_224",
    "eva02_tiny_patch14_336", "convnext_atto", "convnextv2_atto", "efficientnet_b0", "tf_efficientnetv2_b0",
    "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256", "densenet121", "regnety_002", "mixer_s16_224", "gmlp_ti16_224", "resmlp_12_224",
    "xcit_nano_12_p16_224", "cait_xxs24_224", "hrnet_w18_small", "dla34", "vgg11_bn", "ghostnet_050",
    "inception_v3", "inception_v4", "poolformer_s12", "pvt_v2_b0", "levit_128s", "edgenext_xx_small",
    "mobilevit_xxs", "maxvit_pico_rw_256", "twins_svt_small", "visformer_tiny", "tnt_s_patch16_224", "volo_d1_224",
    "crossvit_tiny_240", "convit_tiny", "pit_ti_224", "fastvit_t8", "repvgg_a0", "rexnet_100", "davit_tiny",
    "lcnet_050", "vovnet39a", "hardcorenas_a", "coat_tiny",
)
# fmt: on

# Where a parameter runs after a deeper one, and why that is no mistake.
PARALLEL = {
    "levit_128s": (("head_dist.bn.*",), "the second of two heads that run side by side; its norm is of the trunk"),
    "coat_tiny": (
        ("crpe[1-4].*",),
        "relative positions, called inside each of several blocks; registered, and counted by timm, before all of them",
    ),
}

# Where timm gives a parameter another depth than we do: which, and why theirs is wrong. What its expressions do not
# match is the head to timm, and gets the head's rate although it is pretrained as all of the trunk is.
BEHIND = "behind the last block, of the pretrained trunk; timm gives it the rate of the head"
DIFFERENT = {
    "beit_base_patch16_224": (("fc_norm.*",), BEHIND),
    "eva02_tiny_patch14_336": (("fc_norm.*",), BEHIND),
    "convnext_atto": (("head.norm.*",), BEHIND),
    "convnextv2_atto": (("head.norm.*",), BEHIND),
    "edgenext_xx_small": (("head.norm.*",), BEHIND),
    "davit_tiny": (("head.norm.*",), BEHIND),
    "mobilenetv3_small_050": (("conv_head.*",), BEHIND),
    "mobilenetv4_conv_small": (("conv_head.*", "norm_head.*"), BEHIND),
    "hardcorenas_a": (("conv_head.*",), BEHIND),
    "lcnet_050": (("conv_head.*",), BEHIND),
    "densenet121": (("features.norm5.*",), BEHIND),
    "hrnet_w18_small": (("incre_modules.*", "downsamp_modules.*", "final_layer.*"), BEHIND),
    "vgg11_bn": (("pre_logits.*",), BEHIND + ": most of all weights"),
    "fastvit_t8": (("final_conv.*",), BEHIND),
    "levit_128s": (("head.bn.*", "head_dist.bn.*"), BEHIND),
    "cait_xxs24_224": (
        ("blocks_token_only.*", "norm.*", "head.*"),
        "its two blocks of class attention run behind the 24 of self-attention, and timm counts them with the last two",
    ),
}
# These have no `group_matcher`: timm cuts the list of tensors into pieces of twelve, through the middle of blocks.
CUT = {"poolformer_s12": 6, "pit_ti_224": 9}


@cache
def made(name: str) -> nn.Module:
    """The architecture on the meta device, where nothing is computed and each takes a fraction of a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        timm = pytest.importorskip("timm")
        with torch.device("meta"):
            return timm.create_model(name)


@cache
def depths_in(name: str):
    return depth_of(made(name))


def ids_by_timm(model: nn.Module) -> dict[str, int]:
    """timm's number of each parameter's layer, out of its own groups for an optimizer."""
    from timm.models._manipulate import group_parameters
    from timm.optim import param_groups_layer_decay

    by_matcher = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {
        name_of[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.5)
        for parameter in group["params"]
    }
    last = max(by_matcher.values())
    assert scales == {name: 0.5 ** (last - layer) for name, layer in by_matcher.items()}
    return by_matcher


slow_over_all = pytest.mark.parametrize("name", ARCHITECTURES)


@pytest.mark.slow
@slow_over_all
def test_each_parameter_is_in_one_group_and_the_head_is_the_classifier_at_scale_one(name):
    model, depths = made(name), depths_in(name)
    groups = param_groups(model, 1.0, layer_decay=0.5, weight_decay=0.1)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(parameter) for parameter in model.parameters()}
    assert set(depths.of.values()) == set(range(depths.deepest + 1)), "no gaps"

    told = model.default_cfg["classifier"]
    classifiers = (told,) if isinstance(told, str) else told
    classifier = {n for n, _ in model.named_parameters() if any(names.is_under(n, path) for path in classifiers)}
    assert classifier
    assert depths.head == classifier
    rate = {path: group["lr"] for group in groups for path in group["param_names"]}
    assert {path for path, lr in rate.items() if lr == 1.0} == classifier
    assert rate == {path: 0.5 ** (depths.deepest - depths.of[path]) for path in rate}
    assert all(depths.of[path] == 0 for path in ("cls_token", "pos_embed") if path in depths.of)


@pytest.mark.slow
@slow_over_all
def test_depths_rise_along_the_forward_pass(name, falls):
    model, depths = made(name), depths_in(name)
    with torch.device("meta"):
        fallen = falls(model, depths.of, torch.zeros(2, *model.default_cfg["input_size"]))
    excepted, _why = PARALLEL.get(name, ((), ""))
    assert [path for path in fallen if not any(fnmatchcase(path, pattern) for pattern in excepted)] == []
    assert all(any(fnmatchcase(path, pattern) for path in fallen) for pattern in excepted), "an exception too many"


@pytest.mark.slow
@slow_over_all
def test_where_timm_groups_otherwise_is_listed(name):
    model, depths = made(name), depths_in(name)
    if name in CUT:
        assert not hasattr(model, "group_matcher")
        return
    theirs = ids_by_timm(model)
    other = [path for path, layer in theirs.items() if layer != depths.of[path]]
    listed, _why = DIFFERENT.get(name, ((), ""))
    assert [path for path in other if not any(fnmatchcase(path, pattern) for pattern in listed)] == []
    for pattern in listed:
        members = {path for path in theirs if fnmatchcase(path, pattern)}
        assert members <= set(other), f"{pattern} is listed, and some of it does not differ"
        assert members
    if other and name != "cait_xxs24_224":
        assert {theirs[path] for path in other} == {max(theirs.values())}, "what it does not match is the head"


@pytest.mark.slow
@pytest.mark.parametrize("name", CUT)
def test_without_a_matcher_timm_cuts_blocks_in_two(name):
    model, depths = made(name), depths_in(name)
    from timm.optim import param_groups_layer_decay

    scale = {
        id(parameter): group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.5)
        for parameter in group["params"]
    }
    ours: dict[int, set[float]] = {}
    for path, parameter in model.named_parameters():
        ours.setdefault(depths.of[path], set()).add(scale[id(parameter)])
    cut = sum(len(scales) > 1 for scales in ours.values())
    assert cut == CUT[name], "so many of our layers have two rates with timm"


@pytest.mark.slow
def test_timm_writes_a_scale_that_torch_does_not_read():
    model = made("vit_tiny_patch16_224")
    from timm.optim import param_groups_layer_decay

    def rates(groups):
        optimizer = torch.optim.AdamW(groups, lr=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 if step else 1.0)
        before = sorted({group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        schedule.step()
        return before, sorted({group["lr"] for group in optimizer.param_groups})

    before, after = rates(param_groups_layer_decay(model, layer_decay=0.5))
    assert before == [1.0], "every layer trains at the rate of the head"
    assert after == [0.1]
    before, after = rates(param_groups(model, 1.0, layer_decay=0.5))
    assert before == [0.5**n for n in range(13, -1, -1)]
    assert after == pytest.approx([0.1 * 0.5**n for n in range(13, -1, -1)], rel=1e-12)


class Told(nn.Module):
    """A net that tells its depths by what it is given."""

    def __init__(self, matcher, **parts: nn.Module) -> None:
        super().__init__()
        self.matcher = matcher
        for name, part in parts.items():
            self.add_module(name, part)

    def group_matcher(self, coarse: bool = False):
        if isinstance(self.matcher, Exception):
            raise self.matcher
        return self.matcher


def layers(*names_: str) -> dict[str, nn.Module]:
    return {name: nn.Linear(1, 1, bias=False) for name in names_}


def test_a_single_expression_a_list_and_joining():
    matcher = {"stem": r"^stem|token", "blocks": [(r"^b(\d+)", None), (r"^norm", (99999,))]}
    model = Told(matcher, **layers("stem", "b0", "b10", "b9", "norm", "late"))
    assert depths_by_matcher(model) == {
        "stem.weight": 0,
        "b0.weight": 1,
        "b10.weight": 3,
        "b9.weight": 2,
        "norm.weight": 3,
        "late.weight": 3,
    }, "numbers sort as numbers, and what nothing matches goes with the deepest before it"


def test_a_function_as_matcher():
    model = Told(lambda name: None if name.startswith("x") else int(name[1]), **layers("a0", "x", "a2", "a1"))
    assert depths_by_matcher(model) == {"a0.weight": 0, "x.weight": 0, "a2.weight": 2, "a1.weight": 1}
    model = Told(lambda name: (1, int(name[1])), **layers("a0", "a5"))
    assert depths_by_matcher(model) == {"a0.weight": 0, "a5.weight": 1}


def test_expressions_that_are_none_and_groups_that_did_not_take_part():
    matcher = {"stem": None, "blocks": r"^b(\d+)(?:\.(\d+))?"}
    assert depths_by_matcher(Told(matcher, **layers("b0", "b1"))) == {"b0.weight": 0, "b1.weight": 1}


@pytest.mark.parametrize("matcher", [TypeError("x"), NotImplementedError(), AssertionError(), {"stem": "^nowhere"}, {}])
def test_a_matcher_that_tells_nothing(matcher):
    model = Told(matcher, **layers("a", "b"))
    assert depths_by_matcher(model) is None
    assert depth_of(model).of == {"a.weight": 0, "b.weight": 1}, "by nesting"
    with pytest.raises(SelectionError, match=r"Told does not tell, or tells what cannot be\n  fix: by='blocks'"):
        depth_of(model, by="model")


def test_a_net_without_a_matcher_tells_nothing():
    assert depths_by_matcher(nn.Linear(1, 1)) is None
    assert depths_by_matcher(nn.ModuleDict({"group_matcher": nn.Linear(1, 1)})) is None


class Deep(nn.Module):
    """A block whose part has parts, as those of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"q": nn.Linear(1, 1, bias=False)})


def row(count: int) -> nn.ModuleList:
    return nn.ModuleList(Deep() for _ in range(count))


def test_two_rows_that_share_depths_are_not_believed():
    model = Told({"blocks": r"^(?:self_|class_)(\d+)"}, first=row(3), second=row(2))
    model.matcher = {"blocks": r"^(?:first|second)\.(\d+)"}
    assert depths_by_matcher(model) is None
    found = depth_of(model)
    assert [found.of[f"second.{n}.attention.q.weight"] for n in (0, 1)] == [3, 4]
    assert "nesting" in found.told_by


def test_rows_that_are_branches_of_one_block_are_believed():
    model = Told({"blocks": r"^b(\d+)"}, b0=row(2), b1=nn.ModuleDict({"left": row(2), "right": row(3)}))
    found = depths_by_matcher(model)
    assert found is not None
    assert {path: found[path] for path in found if ".0." in path} == {
        "b0.0.attention.q.weight": 0,
        "b1.left.0.attention.q.weight": 1,
        "b1.right.0.attention.q.weight": 1,
    }


def test_patch_embeddings_that_count_with_a_block_are_believed():
    class Embed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(1, 1)

    model = Told({"b": r"^(?:embed|blocks)\.(\d+)"}, embed=nn.ModuleList([Embed(), Embed()]), blocks=row(2))
    found = depths_by_matcher(model)
    assert found is not None
    assert found["embed.1.proj.weight"] == found["blocks.1.attention.q.weight"] == 1
