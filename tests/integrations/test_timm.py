"""Models of timm: trunk and head, layers in order, classifiers, and frozen batch norms there and back."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import CannotConvert, FrozenStateMoved, ModelError
from frostline.integrations.timm import frozen_to_hold, layer_groups, replace_classifiers, trunk_and_head
from frostline.optim import Epoch, Stage, Unfreeze, Unfreezing, check_groups
from frostline.state import select

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm
    from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, freeze_batch_norm_2d, unfreeze_batch_norm_2d
    from torchvision.ops import FrozenBatchNorm2d

# Name, size of the images, head. Real ones, on the meta device: their structure and their shapes count, not values.
NETS = {
    "resnet18": (64, ("fc",)),
    "convnext_atto": (64, ("head.fc", "head.drop")),
    "vit_tiny_patch16_224": (224, ("head", "head_drop")),
    "efficientnet_b0": (64, ("classifier",)),
    "swin_tiny_patch4_window7_224": (224, ("head.fc", "head.drop")),
    "deit_tiny_distilled_patch16_224": (224, ("head", "head_dist", "head_drop")),
    "resnetv2_18": (64, ("head.fc", "head.drop")),  # a convolution
    "levit_128s": (224, ("head", "head_dist")),  # a norm before each linear layer
    "caformer_s18": (64, ("head.fc", "head.drop")),  # two linear layers, of which the configuration names the last
    "repvit_m0_9": (64, ("head", "head_drop")),  # a module of classifiers
}
# timm's own nets for tests, which are small.
SMALL = ["test_resnet", "test_convnext", "test_vit", "test_efficientnet"]


@pytest.fixture
def make():
    """A net of random values, for images of 32 pixels where it has to know."""

    def build(name, **settings):
        torch.manual_seed(0)
        return timm.create_model(name, **({"img_size": 32} if "vit" in name else {}), **settings)

    return build


@pytest.fixture
def shapes():
    def build(name, **settings):
        with torch.device("meta"):
            return timm.create_model(name, **settings)

    return build


def bytes_of(module):
    return {name: t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            for name, t in module.state_dict().items()}  # fmt: skip


def moved(before, after):
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def images(size=32, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


class TestTrunkAndHead:
    @pytest.mark.parametrize("name", NETS)
    def test_what_is_the_head(self, shapes, name):
        net = shapes(name)
        trunk, head = trunk_and_head(net)
        assert set(head) == set(NETS[name][1])
        both = [select(net, *part) for part in (trunk, head)]
        assert not both[0].parameters.keys() & both[1].parameters.keys()
        assert both[0].parameters.keys() | both[1].parameters.keys() == dict(net.named_parameters()).keys()

    @pytest.mark.parametrize("name", SMALL)
    def test_a_held_trunk_gives_the_features_of_eval_mode_and_does_not_move(self, make, name):
        net, x = make(name, drop_rate=0.3, drop_path_rate=0.3), images()
        expected = net.eval().forward_features(x)
        trunk, head = trunk_and_head(net)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        hold = fl.freeze(net, *trunk, optimizer=optimizer)
        before = bytes_of(net)
        for _ in range(2):
            net.train()
            net(x).square().mean().backward()
            optimizer.step()
        assert torch.equal(net.forward_features(x), expected)
        in_head = select(net, *head).parameters.keys()
        assert moved(before, bytes_of(net)) == in_head
        assert len(in_head) == 2
        drops = [m for p, m in net.named_modules() if isinstance(m, nn.Dropout) and p in head]
        assert all(drop.training for drop in drops), "what is dropped before the head is the head's"
        hold.verify()

    def test_a_part_frozen_by_hand_moves(self, make):
        net = make("test_resnet")
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.startswith("fc"))
        before = bytes_of(net)
        net.train()(images())
        assert {name.rpartition(".")[2] for name in moved(before, bytes_of(net))} == {
            "running_mean", "running_var", "num_batches_tracked"
        }  # fmt: skip

    def test_volo_has_a_second_classifier_that_only_its_configuration_names(self, shapes):
        assert trunk_and_head(shapes("volo_d1_224")).head == ("aux_head", "head", "head_drop")

    def test_a_model_made_by_its_class_tells_by_get_classifier_alone(self):
        net = timm.models.VisionTransformer(img_size=32, embed_dim=24, depth=2, num_heads=2, num_classes=5)
        assert set(trunk_and_head(net).head) == {"head", "head_drop"}
        (change,) = replace_classifiers(net, 3)
        assert (change.path, net.num_classes, net(images(32)).shape) == ("head", 3, (2, 3))

    def test_through_wrappers(self, make):
        net = make("test_resnet")
        for wrapped in (nn.DataParallel(net), torch.compile(net, backend="eager")):
            assert trunk_and_head(wrapped) == trunk_and_head(net)

    def test_no_model_of_timm(self):
        with pytest.raises(ModelError, match=r"Linear has no get_classifier\(\).*\n  fix: name the head yourself"):
            trunk_and_head(nn.Linear(1, 1))

    @pytest.mark.parametrize("ask", [trunk_and_head, layer_groups, lambda net: replace_classifiers(net, 3)])
    def test_no_classifier(self, make, ask):
        net = make("test_resnet", num_classes=0)
        with pytest.raises(ModelError, match=r"no classifier \(num_classes=0\)\n  fix: model.reset_classifier\(10\)"):
            ask(net)
        net.reset_classifier(4)
        ask(net)


class TestLayerGroups:
    @pytest.mark.parametrize("name", NETS)
    def test_stem_blocks_and_head_are_the_whole_model_once(self, shapes, name):
        net = shapes(name)
        groups = layer_groups(net)
        assert next(iter(groups)) == "stem"
        assert [*groups][-1] == "head"
        found = [path for parts in groups.values() for path in select(net, *parts).parameters]
        assert len(found) == len(set(found))
        assert set(found) == dict(net.named_parameters()).keys()

    def test_in_the_order_of_the_net(self, shapes):
        groups = layer_groups(shapes("vit_tiny_patch16_224"))
        assert len(groups) == 14
        assert set(groups["stem"]) == {"cls_token", "pos_embed", "patch_embed"}
        assert groups["block 1"] == ("blocks.0",)
        assert set(groups["block 12"]) == {"blocks.11", "norm"}

    def test_a_schedule_of_them(self, make):
        net = make("resnet10t")
        groups = layer_groups(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        late = (Stage(groups["block 4"], Epoch(1)), Stage(groups["block 3"], Epoch(2)))
        unfreezing = Unfreezing(Unfreeze(late), net, optimizer)
        hold = fl.freeze(net, *(part for name in ("stem", "block 1", "block 2") for part in groups[name]))
        trains = []
        for _ in range(3):
            trains.append({n.split(".")[0] for n, p in net.named_parameters() if p.requires_grad})
            unfreezing.epoch_end()
        assert trains == [{"fc"}, {"fc", "layer4"}, {"fc", "layer4", "layer3"}]
        hold.verify()


class TestReplaceClassifiers:
    @pytest.mark.parametrize("name", NETS)
    def test_all_that_says_the_number_says_the_new_one(self, shapes, name):
        net = shapes(name)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        count = len(optimizer.param_groups[0]["params"])
        trunk = {id(p): p for p in select(net, *trunk_and_head(net).trunk).parameters.values()}
        changes = replace_classifiers(net, 7, optimizer=optimizer)
        assert {change.new for change in changes} == {7}
        assert net.num_classes == 7
        given = net.get_classifier()
        for each in given if isinstance(given, tuple) else (given,):
            assert any(change.module in list(each.modules()) for change in changes)
        x = torch.empty(2, 3, NETS[name][0], NETS[name][0], device="meta")
        assert net.eval()(x).shape == (2, 7)
        # The optimizer follows: nothing orphaned, nothing missing, the trunk's parameters are the objects they were.
        assert check_groups(net, optimizer).right
        assert len(optimizer.param_groups[0]["params"]) == count
        assert trunk.keys() <= {id(p) for p in net.parameters()}
        with torch.device("meta"):
            net.reset_classifier(3)
        assert net.num_classes == 3
        assert net(x).shape == (2, 3)

    def test_timms_own_leaves_the_optimizer_with_the_old_head(self, make):
        net = make("test_resnet")
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        net.reset_classifier(7)
        assert not check_groups(net, optimizer).right

    def test_under_a_hold_of_the_trunk(self, make):
        net = make("test_convnext")
        hold = fl.freeze(net, *trunk_and_head(net).trunk)
        replace_classifiers(net, ["ant", "bee"])
        assert net.head.fc.weight.requires_grad
        hold.verify()

    def test_all_refusals_come_first(self, make):
        net = make("deit_tiny_distilled_patch16_224")
        fl.freeze(net, "head_dist")
        heads = net.head, net.head_dist
        with pytest.raises(ModelError, match="is held"):
            replace_classifiers(net, 7)
        assert (net.head, net.head_dist) == heads
        assert net.num_classes == 1000


def frozen_net(make, kind):
    """A net with frozen batch norms of torchvision, or of timm with an activation, and statistics of some data."""
    net = make("test_resnet" if kind == "torchvision" else "test_efficientnet")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.eps = 1e-3
    return freeze_batch_norm_2d(net.eval())


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
class TestFrozenToHold:
    def test_held_and_back(self, make, kind):
        net = frozen_net(make, kind)
        theirs = [m for m in net.modules() if isinstance(m, (FrozenBatchNorm2d, FrozenBatchNormAct2d))]
        rest = list(net.parameters())
        x = images()
        expected, saved = net(x), bytes_of(net)
        held = frozen_to_hold(net)
        ours = [net.get_submodule(path) for path in held.paths]
        assert len(ours) == len(theirs)
        assert {type(m) for m in ours} <= ({nn.BatchNorm2d} if kind == "torchvision" else {BatchNormAct2d})
        assert {m.eps for m in ours} == {1e-3}
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.running_mean is other.running_mean
            assert mine.weight.data_ptr() == other.weight.data_ptr()
            assert kind == "torchvision" or (mine.act is other.act and mine.drop is other.drop)
        gained = {f"{path}.num_batches_tracked" for path in held.paths}
        assert moved(saved, bytes_of(net)) == gained
        assert all(int(m.num_batches_tracked) == 0 for m in ours)
        # Row F22: not equal to the bit, 9.5e-7 in one layer. Here 2e-7 of the largest output; fifty times that.
        out = net(x)
        assert not torch.equal(out, expected)
        assert torch.allclose(out, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))
        state = bytes_of(net)
        net.train()(x).square().mean().backward()
        held.hold.verify()
        assert moved(state, bytes_of(net)) == set()
        assert held.back() is net
        assert [m for m in net.modules() if isinstance(m, (FrozenBatchNorm2d, FrozenBatchNormAct2d))] == theirs
        assert bytes_of(net) == saved
        assert torch.equal(net.eval()(x), expected)
        assert all(p is q for p, q in zip(net.parameters(), rest, strict=True))
        assert held.back() is net

    def test_thawed_they_train_and_what_was_trained_goes_back(self, make, kind):
        net = frozen_net(make, kind)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        held = frozen_to_hold(net)
        optimizer.add_param_group({"params": held.parameters})
        first = net.get_submodule(held.paths[0])
        weight, mean = first.weight.detach().clone(), first.running_mean.clone()
        held.hold.thaw()
        net.train()
        net(images(count=4)).square().mean().backward()
        optimizer.step()
        assert not torch.equal(first.weight, weight)
        assert not torch.equal(first.running_mean, mean)
        assert int(first.num_batches_tracked) == 1
        trained = first.weight.detach().clone()
        held.back()
        assert torch.equal(net.get_submodule(held.paths[0]).weight, trained)
        assert torch.equal(net.get_submodule(held.paths[0]).running_mean, first.running_mean)

    def test_a_part(self, make, kind):
        net = frozen_net(make, kind)
        part = "layer1" if kind == "torchvision" else "blocks.0"
        held = frozen_to_hold(net, part)
        assert held.paths
        assert all(path.startswith(part) for path in held.paths)
        with pytest.raises(ModelError, match=r"no frozen batch norm of timm or torchvision.*\n  fix: fl.freeze"):
            frozen_to_hold(net, part)

    def test_something_else_in_its_place_since(self, make, kind):
        net = frozen_net(make, kind)
        held = frozen_to_hold(net)
        path = held.paths[0]
        net.get_submodule(path.rpartition(".")[0]).add_module(path.rpartition(".")[2], nn.Identity())
        with pytest.raises(CannotConvert, match="something else stands in its place"):
            held.back()


class TestOfTimmAlone:
    def test_a_layer_that_torchvision_made_breaks_timms_way_back(self):
        layer = FrozenBatchNorm2d(3)
        with pytest.raises(AttributeError, match="num_features"):
            unfreeze_batch_norm_2d(nn.Sequential(layer))
        model = nn.Sequential(FrozenBatchNorm2d(3))
        assert type(frozen_to_hold(model).model[0]) is nn.BatchNorm2d

    def test_a_model_that_is_one_layer(self):
        held = frozen_to_hold(FrozenBatchNormAct2d(3))
        assert type(held.model) is BatchNormAct2d
        assert not held.model.train().training
        assert type(held.back()) is FrozenBatchNormAct2d

    def test_the_optimizer_loses_the_parameters_of_timms_frozen_layers_and_keeps_those_of_a_hold(self, make):
        for freeze, thaw, right in [
            (lambda net: timm.utils.freeze(net, ["bn1"]), lambda net: timm.utils.unfreeze(net, ["bn1"]), False),
            (lambda net: fl.freeze(net, "bn1"), lambda net: fl.freezing.holds_on(net)[0].thaw(), True),
        ]:
            net = make("test_resnet")
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            weight = net.bn1.weight
            freeze(net)
            thaw(net)
            assert (net.bn1.weight is weight) is right
            assert check_groups(net, optimizer).right is right

    def test_timms_conversion_of_what_is_held_is_named(self, make):
        net = make("test_resnet")
        hold = fl.freeze(net, "bn1")
        freeze_batch_norm_2d(net)
        with pytest.raises(FrozenStateMoved, match="bn1"):
            hold.verify()


class Volume(nn.Module):
    """What ``timm.utils.freeze`` does not know: batch norms of one and three dimensions, instance norm, dropout."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.InstanceNorm3d(4, track_running_stats=True),
            nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(32, 6), nn.BatchNorm1d(6), nn.Dropout(0.5),
        )  # fmt: skip
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.trunk(x))


class TestInPlaceOfTimmUtilsFreeze:
    def trained(self, freeze):
        torch.manual_seed(0)
        net, x = Volume(), torch.randn(8, 1, 4, 4, 4)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        freeze(net, optimizer)
        before = bytes_of(net.trunk)
        for _ in range(2):
            net.train()
            net(x).square().mean().backward()
            optimizer.step()
        features = [net.train().trunk(x) for _ in range(2)]
        return moved(before, bytes_of(net.trunk)), torch.equal(*features)

    def test_timms_leaves_statistics_dropout_and_momentum_moving(self):
        found, same = self.trained(lambda net, optimizer: timm.utils.freeze(net, ["trunk"]))
        statistics = {f"{layer}.{name}" for layer in (1, 2, 6) for name in ("running_mean", "running_var")}
        assert found >= statistics
        assert found >= {"0.weight", "5.weight"}, "momentum, by gradients of zeros"
        assert not same

    def test_ours_does_not(self):
        found, same = self.trained(lambda net, optimizer: fl.freeze(net, "trunk", optimizer=optimizer))
        assert found == set()
        assert same
