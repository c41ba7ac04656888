"""Where heads are found, and why some cannot be replaced."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import frostline as fl
from frostline.errors import ModelError, UnsupportedModel
from frostline.heads import replace_head, widen
from frostline.heads.site import find_head


def test_a_head_is_found_through_wrappers(net):
    for model in (
        net,
        torch.compile(net, backend="eager"),
        nn.DataParallel(net),
        nn.DataParallel(torch.compile(net, backend="eager")),
    ):
        site = find_head(model, "fc", "f")
        assert site.module is net.fc
        assert (site.path, site.paths, site.rows, list(site.owners)) == ("fc", ("fc",), 3, [""])
        assert site.root is net


def test_a_head_is_found_without_the_tokens_of_wrappers(net):
    model = nn.Sequential(torch.compile(net, backend="eager"))
    site = find_head(model, "0.fc", "f")
    assert site.module is net.fc
    assert site.path == "0._orig_mod.fc"
    assert [place.parent for place in site.places] == [net]


def test_an_unknown_name_names_the_nearest(net, refused):
    message = refused(lambda: replace_head(net, "fcc", 2), net)
    assert message == (
        "replace_head(Net, 'fcc'): the model has no module of that name\n"
        "  fix: one of the Linear and convolution layers: fc"
    )
    assert refused(lambda: replace_head(net, "zzz", 2), net).endswith("layers: fc, neck.0, stem")
    bare = nn.Sequential(nn.ReLU())
    assert refused(lambda: replace_head(bare, "fc", 2), bare).endswith("fix: a model with a Linear layer")


def test_another_layer_names_the_heads_in_it(net, refused):
    assert refused(lambda: widen(net, "neck", ["a"], ["a"]), net) == (
        "widen(Net, 'neck'): a head is a Linear or a convolution layer\n"
        "  found: a Sequential\n"
        "  fix: those inside it: neck.0"
    )
    assert "found: a BatchNorm2d\n  fix: those in the model: fc" in refused(lambda: replace_head(net, "norm", 2), net)
    model = nn.Sequential(nn.MultiheadAttention(4, 1))
    assert "which never calls it" in refused(lambda: replace_head(model, "0.out_proj", 2), model)
    transposed = nn.Sequential(nn.ConvTranspose2d(3, 4, 2))
    assert "found: a ConvTranspose2d\n  fix: the model has none" in refused(
        lambda: replace_head(transposed, "0", 2), transposed
    )


def test_the_model_itself_has_no_place(refused):
    head = nn.Linear(2, 3)
    assert "names the model itself" in refused(lambda: replace_head(head, "", 2), head)


def test_a_lazy_head(refused):
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ModelError, match=r"is lazy and does not know its width yet\n  fix: run the model once"):
        replace_head(model, "1", 2)
    model(torch.zeros(1, 3))
    assert replace_head(model, "1", 4).new == 4


@pytest.mark.parametrize("level", ["state", "grad"])
def test_a_held_head(net, refused, level: str):
    hold = fl.freeze(net, "fc", level=level)
    message = refused(lambda: replace_head(net, "fc", 2), net)
    assert f"the head is held (level {level})\n  fix: release the hold first" in message
    assert "is held" in refused(lambda: widen(net, "fc", ["a", "b", "c"], ["a", "b", "c", "d"]), net)
    hold.verify()
    hold.thaw()
    assert replace_head(net, "fc", 2).new == 2


def test_a_head_beside_what_is_held(net):
    hold = fl.freeze(net, "stem", "norm", "neck")
    replace_head(net, "fc", 2)
    hold.verify()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embed.weight


def test_a_tied_head(refused):
    model = Tied()
    assert "shares its tensors with embed.weight, which would no longer be tied" in refused(
        lambda: replace_head(model, "out", 3), model
    )
    model.out.weight = nn.Parameter(model.out.weight.detach().clone())
    assert replace_head(model, "out", 3).new == 3


def test_a_head_that_is_a_view_of_another_tensor(net, refused):
    net.register_buffer("flat", torch.zeros(100))
    net.fc.weight = nn.Parameter(net.flat[:24].view(3, 8))
    assert "shares its tensors with flat" in refused(lambda: replace_head(net, "fc", 3), net)


def test_a_head_that_is_also_kept_elsewhere(net, refused):
    net.favourites = [net.fc]
    assert "is also kept in 'favourites'" in refused(lambda: replace_head(net, "fc", 3), net)


def old_weight_norm(head):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.weight_norm(head)


@pytest.mark.parametrize(
    "prepare",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        old_weight_norm,
        lambda head: prune.l1_unstructured(head, "weight", 0.5),
        lambda head: head.register_buffer("scale", torch.ones(1)),
        lambda head: head.register_parameter("scale", nn.Parameter(torch.ones(1))),
        lambda head: head.add_module("drop", nn.Dropout()),
    ],
)
def test_a_head_that_keeps_more_than_its_weight(net, refused, prepare):
    prepare(net.fc)
    message = refused(lambda: replace_head(net, "fc", 3), net)
    assert "keeps more than weight and bias" in message


@pytest.mark.parametrize(
    "hook",
    [
        lambda head: head.register_forward_hook(print),
        lambda head: head.register_forward_pre_hook(print),
        lambda head: head.register_full_backward_hook(print),
        lambda head: head.register_state_dict_pre_hook(print),
        lambda head: head.register_load_state_dict_post_hook(print),
        lambda head: head.weight.register_hook(print),
        lambda head: head.bias.register_post_accumulate_grad_hook(print),
    ],
)
def test_hooks_would_be_lost(net, refused, hook):
    handle = hook(net.fc)
    assert "has hooks, which would be lost" in refused(lambda: replace_head(net, "fc", 3), net)
    handle.remove()
    assert replace_head(net, "fc", 4).new == 4


def test_what_was_put_onto_a_head(net, refused):
    net.fc.forward = lambda x: x
    assert "its forward has been replaced by a function" in refused(lambda: replace_head(net, "fc", 3), net)


def test_a_head_that_is_compiled_by_itself(net, refused):
    plain = net.fc
    net.fc = torch.compile(plain, backend="eager")
    assert "is compiled by itself\n  fix: replace it first" in refused(lambda: replace_head(net, "fc", 3), net)
    net.fc = plain
    net.fc.compile(backend="eager")
    assert "compiled by itself\n  fix: replace it first" in refused(lambda: replace_head(net, "fc", 3), net)


def test_parameters_that_are_no_plain_numbers(net, refused):
    class Packed(nn.Parameter):
        pass

    net.fc.weight = Packed(net.fc.weight.detach())
    assert "has a Packed of float32" in refused(lambda: replace_head(net, "fc", 3), net)
    net.fc.weight = nn.Parameter(torch.zeros(3, 8, dtype=torch.int8), requires_grad=False)
    assert "has a Parameter of int8" in refused(lambda: replace_head(net, "fc", 3), net)


@pytest.mark.filterwarnings("ignore")
def test_torch_jit(net):
    with pytest.raises(UnsupportedModel, match=r"torch\.jit"):
        replace_head(torch.jit.trace(net.eval(), torch.zeros(1, 3, 8, 8)), "fc", 2)


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_models_that_are_wrapped_for_several_devices(net, one_process, refused):
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(net))
    for model in (wrapped, nn.Sequential(wrapped)):
        name = "fc" if model is wrapped else "0.module.fc"
        message = refused(lambda: replace_head(model, name, 2), model)  # noqa: B023
        assert "is inside a DistributedDataParallel, which would not synchronize" in message
        assert message.endswith("fix: replace before wrapping")
    # Replaced before, it trains.
    model = copy.deepcopy(net)
    replace_head(model, "fc", 2)
    assert nn.parallel.DistributedDataParallel(model)(torch.zeros(2, 3, 8, 8)).shape == (2, 2)


@pytest.mark.filterwarnings("ignore")
def test_sharded_models(net, one_process):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("fully_shard came with torch 2.6")
    fsdp.fully_shard(net, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    with pytest.raises(ModelError, match=r"is inside a FSDPNet, which would not synchronize"):
        replace_head(net, "fc", 2)
