"""Holds: what they keep, how they nest, what they prove and how they end."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import warnings
import weakref

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import (
    CannotDigest,
    CannotFreeze,
    FreezeError,
    FrozenStateMoved,
    HoldReleased,
    NothingSelected,
    TiedAcrossBoundary,
)
from frostline.freezing import KeepTensors, holds_on


@pytest.fixture
def model(two_heads):
    return two_heads


@pytest.fixture
def state():
    """Everything a hold touches and has to bring back: modes, requires_grad, dropout rates, odd attributes, bytes."""

    def read(model):
        return (
            [(p, m.training, type(m), sorted(m.__dict__)) for p, m in model.named_modules(remove_duplicate=False)],
            [(p, t.requires_grad, id(t)) for p, t in model.named_parameters(remove_duplicate=False)],
            {p: t.detach().clone().view(-1).tolist() for p, t in model.state_dict().items()},
        )

    return read


class TestWhatIsHeld:
    def test_everything_at_level_state(self, model, images, train, bytes_of, moved):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        hold = fl.freeze(model, "trunk", "old", optimizer=optimizer)
        before = bytes_of(model)
        expected = model.eval()(images)["old"]
        train(model, images, optimizer)
        assert moved(before, bytes_of(model)) == {"new.weight", "new.bias"}
        assert torch.equal(model.train()(images)["old"], expected)
        assert hold.verify().still == len(hold.paths)
        assert hold.level == "state"
        assert all(p.grad is None and not p.requires_grad for p in model.trunk.parameters())

    def test_level_grad_is_parameters_only(self, model, images, train):
        hold = fl.freeze(model, "trunk", level="grad")
        assert {p.rpartition(".")[2] for p in hold.paths} == {"weight", "bias", "requires_grad"}
        train(model, images)
        assert model.trunk[1].num_batches_tracked == 3
        assert model.trunk[3].training
        hold.verify()

    def test_level_stats_lets_weight_and_bias_train(self, model, images, train, bytes_of, moved):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        hold = fl.freeze(model, "trunk", level="stats", optimizer=optimizer)
        assert hold.paths == [
            f"trunk.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked", "training")
        ]
        before = bytes_of(model)
        train(model, images, optimizer)
        assert {"trunk.0.weight", "trunk.1.weight", "trunk.1.bias"} <= moved(before, bytes_of(model))
        assert not any("running" in name for name in moved(before, bytes_of(model)))
        assert model.trunk[3].training
        hold.verify()

    def test_gradients_go_at_once(self, model, images):
        sum(o.sum() for o in model(images).values()).backward()
        fl.freeze(model, "trunk")
        assert all(p.grad is None for p in model.trunk.parameters())
        assert model.new.weight.grad is not None

    def test_the_hold_need_not_be_kept(self, model, images, train, bytes_of):
        fl.freeze(model, "trunk")
        gc.collect()
        before = bytes_of(model.trunk)
        train(model, images, torch.optim.SGD(model.parameters(), lr=0.1))
        assert bytes_of(model.trunk) == before

    def test_whole_model(self, model, images):
        hold = fl.freeze(model, "*")
        assert not any(m.training for m in model.train().modules())
        assert str(hold).startswith("hold on TwoHeads, level 'state': ")

    @pytest.mark.parametrize("selector", ["trunk", "the module", "the type", "a predicate", "a regex", "a glob"])
    def test_every_kind_of_selector(self, model, selector):
        import re

        given = {
            "trunk": "trunk",
            "the module": model.trunk,
            "the type": nn.Sequential,
            "a predicate": lambda path, module: path == "trunk",
            "a regex": re.compile("trunk"),
            "a glob": "tr*k",
        }[selector]
        hold = fl.freeze(model, given)
        assert set(hold.paths) == set(fl.freeze(model, "trunk").paths)
        hold.verify()
        hold.refresh()

    def test_parameter_object(self, model):
        hold = fl.freeze(model, model.old.weight)
        assert hold.paths == ["old.weight", "old.weight.requires_grad"]
        assert model.old.training
        assert model.old.bias.requires_grad
        hold.thaw()
        assert model.old.weight.requires_grad

    def test_printed(self, model):
        hold = fl.freeze(model, "trunk", "old")
        assert str(hold) == ("hold on TwoHeads, level 'state': 27 state entries, 6 parameters, 7 modules\n  trunk, old")
        assert hold._repr_html_() == f"<pre>{str(hold).replace(chr(39), '&#x27;')}</pre>"
        hold.thaw()
        assert str(hold) == "hold on nothing (level 'state', released)"


LAYERS = {
    "dropout": (nn.Dropout, (4, 3)),
    "dropout2d": (nn.Dropout2d, (4, 3, 2, 2)),
    "alpha dropout": (nn.AlphaDropout, (4, 3)),
    "rrelu": (nn.RReLU, (4, 3)),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True), (2, 3, 4)),
    "decoder-like stack": (lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()), (4, 3)),
}


class TestLayersThatGoByTheMode:
    @pytest.mark.parametrize("kind", LAYERS)
    def test_output_is_eval_output_and_repeats(self, kind, twin):
        build, shape = LAYERS[kind]
        model, x = nn.Sequential(build()), torch.randn(shape)
        model.eval()
        with torch.no_grad():
            model(x)
        twin.freeze(model, "0")
        model.train()
        with twin.verdict():
            assert torch.equal(model(x), model(x))

    @pytest.mark.parametrize("which", ["timm DropPath", "torchvision StochasticDepth"])
    def test_stochastic_depth(self, which, twin, vit_tiny):
        from frostline.compat import import_torchvision

        if which == "timm DropPath":
            from timm.layers import DropPath

            layer = DropPath(0.5)
        else:
            layer = import_torchvision("ops").StochasticDepth(0.5, "row")
        model = nn.Sequential(layer)
        twin.freeze(model, "0")
        model.train()
        x = torch.randn(64, 3)
        with twin.verdict():
            assert torch.equal(model(x), x)

    def test_multihead_attention_with_dropout(self, twin):
        model = nn.ModuleList([nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)])
        x = torch.randn(2, 5, 4)
        twin.freeze(model, "0")
        expected = model.eval()[0](x, x, x, need_weights=True)
        model.train()
        with twin.verdict():
            assert all(map(torch.equal, model[0](x, x, x, need_weights=True), expected))

    def test_codebook_gated_by_the_mode(self, gated_codebook, twin, train, bytes_of, moved):
        model = nn.Sequential(nn.Linear(3, 6), gated_codebook())
        twin.freeze(model, "1")
        before = bytes_of(model[1])
        train(model, torch.randn(5, 3))
        with twin.verdict():
            assert moved(before, bytes_of(model[1])) == set()

    def test_codebook_that_learns_in_every_mode_is_refused_by_the_probe_and_held_with_a_handler(
        self, ungated_codebook, train, bytes_of, moved, state
    ):
        model = nn.Sequential(nn.Linear(3, 6), ungated_codebook())
        before = state(model)
        with pytest.raises(CannotFreeze, match=r"UngatedCodebook: KeepTensors\(\)"):
            fl.freeze(model, "1", probe=torch.randn(5, 3))
        assert state(model) == before
        hold = fl.freeze(model, "1", probe=torch.randn(5, 3), handlers={ungated_codebook: KeepTensors()})
        codes = bytes_of(model[1])
        train(model, torch.randn(5, 3))
        assert moved(codes, bytes_of(model[1])) == set()
        hold.verify()
        hold.thaw()
        train(model, torch.randn(5, 3))
        assert moved(codes, bytes_of(model[1])) == {"codes"}


class TestRefusals:
    """Each leaves the model exactly as it was."""

    @pytest.mark.parametrize(
        ("build", "error", "match"),
        [
            (lambda: nn.Sequential(nn.LazyLinear(2)), CannotFreeze, "lazy modules"),
            (lambda: nn.Sequential(nn.LazyBatchNorm1d()), CannotFreeze, "lazy modules"),
            (lambda: nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)), CannotFreeze, "N302"),
            (lambda: nn.Sequential(nn.SyncBatchNorm(2, track_running_stats=False)), CannotFreeze, "N302"),
            (lambda: nn.Sequential(nn.Linear(2, 2, device="meta")), CannotDigest, "meta device"),
        ],
        ids=["lazy linear", "lazy batch norm", "batch norm without statistics", "sync without", "meta"],
    )
    def test_model_is_untouched(self, build, error, match):
        model = nn.Sequential(nn.Linear(2, 2), build())
        model[0].weight.grad = grad = torch.ones(2, 2)

        def read():
            return [(m.training, type(m), dict(m.__dict__)) for m in model.modules()]

        before, flags = read(), [p.requires_grad for p in model.parameters()]
        with pytest.raises(error, match=match):
            fl.freeze(model, "*")
        assert read() == before
        assert [p.requires_grad for p in model.parameters()] == flags
        assert model[0].weight.grad is grad

    def test_lazy_parameter_by_itself(self):
        with pytest.raises(CannotFreeze, match="lazy modules"):
            fl.freeze(nn.Sequential(nn.LazyLinear(2)), "0.weight")

    def test_batch_norm_without_statistics_may_be_held_at_level_grad(self):
        model = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False))
        fl.freeze(model, "0", level="grad").verify()

    def test_lazy_is_taken_once_it_is_materialized(self):
        model = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
        model(torch.randn(4, 3))
        hold = fl.freeze(model, "*")
        model.train()(torch.randn(4, 3))
        hold.verify()

    def test_wrong_words(self, model):
        with pytest.raises(
            CannotFreeze, match=r"freeze\(level='all'\): no such level.\n  fix: one of grad, stats, state"
        ):
            fl.freeze(model, "trunk", level="all")
        with pytest.raises(CannotFreeze, match=r"freeze\(lock='firm'\): no such lock.\n  fix: one of soft, hard"):
            fl.freeze(model, "trunk", lock="firm")
        with pytest.raises(NothingSelected, match="trunk"):
            fl.freeze(model, "trnk")
        with pytest.raises(FreezeError, match=r"expected a torch.optim.Optimizer, got str"):
            fl.freeze(model, "trunk", optimizer="adam")

    def test_a_probe_that_raises_rolls_back(self, model, images, state):
        model.trunk[0].weight.grad = grad = torch.ones_like(model.trunk[0].weight)
        before = state(model)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            fl.freeze(model, "trunk", probe=torch.randn(2, 1, 9, 9))
        assert state(model) == before
        assert model.trunk[0].weight.grad is grad

    def test_a_handler_that_raises_rolls_back(self, model, state):
        class Broken(KeepTensors):
            def attach(self, module):
                raise OSError("broken")

        before = state(model)
        with pytest.raises(OSError, match="broken"):
            fl.freeze(model, "trunk", handlers={nn.Flatten: Broken(), nn.Dropout: KeepTensors()})
        assert state(model) == before


class TestTied:
    @pytest.fixture
    def tied(self):
        model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "mid": nn.Linear(3, 3), "out": nn.Linear(3, 5, bias=False)})
        model["out"].weight = model["embed"].weight
        return model

    def test_crossing_the_boundary_is_warned_of_by_name(self, tied):
        with pytest.warns(TiedAcrossBoundary, match=r"F113 .*'embed.weight' is held, and with it 'out.weight'") as seen:
            hold = fl.freeze(tied, "embed")
        assert seen[0].filename == __file__
        assert [f.code for f in hold.findings] == ["F113"]
        assert not tied["out"].weight.requires_grad

    def test_no_warning_where_both_names_are_held(self, tied):
        assert fl.freeze(tied, "embed", "out").findings == []

    def test_where_warnings_are_errors_nothing_is_frozen(self, tied, state):
        before = state(tied)
        with warnings.catch_warnings(), pytest.raises(TiedAcrossBoundary):
            warnings.simplefilter("error")
            fl.freeze(tied, "embed")
        assert state(tied) == before

    def test_shared_module_crossing(self):
        shared = nn.Dropout()
        model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))
        with pytest.warns(TiedAcrossBoundary, match=r"module '0.0' is held, and with it '1.0'"):
            fl.freeze(model, "0")

    @pytest.mark.filterwarnings("ignore::frostline.errors.TiedAcrossBoundary")
    @pytest.mark.parametrize("names", [("embed", "out"), ("out", "embed")])
    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_held_from_either_name_in_any_order(self, tied, names, order):
        holds = [fl.freeze(tied, name) for name in names]
        holds[order[0]].thaw()
        assert not tied["embed"].weight.requires_grad
        holds[order[1]].verify()
        holds[order[1]].thaw()
        assert tied["out"].weight.requires_grad

    def test_a_thaw_by_one_name_keeps_what_the_other_name_holds(self, tied):
        hold = fl.freeze(tied, "embed", "out")
        with pytest.warns(TiedAcrossBoundary, match="out.weight"):
            hold.thaw("embed")
        assert not tied["embed"].weight.requires_grad
        assert tied.train()["embed"].training
        hold.verify()
        hold.thaw("out")
        assert tied["embed"].weight.requires_grad

    @pytest.mark.filterwarnings("ignore::frostline.errors.TiedAcrossBoundary")
    def test_a_shared_module_thawed_by_one_name_stays_held_by_the_other(self):
        shared = nn.Dropout()
        model = nn.Sequential(shared, nn.Linear(1, 1), shared)
        hold = fl.freeze(model, "*")
        hold.thaw("0")
        assert not model.train()[0].training
        hold.verify()
        hold.thaw("2")
        assert model.train()[0].training


def test_root_level_parameters_of_a_vit_are_reported(vit_tiny):
    hold = fl.freeze(vit_tiny, "blocks", "patch_embed")
    (finding,) = hold.findings
    assert finding.code == "F121"
    assert finding.paths == ("cls_token", "pos_embed")
    assert "2 parameters beside the held part stay trainable: cls_token, pos_embed" in str(hold)
    hold.thaw()
    hold = fl.freeze(vit_tiny, "!head")
    assert hold.findings == []
    assert not vit_tiny.cls_token.requires_grad
    vit_tiny.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert [n for n, p in vit_tiny.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]
    hold.verify()


class TestNesting:
    PARTS = (("trunk",), ("trunk.1", "old"), ("*",))
    LEVELS = ("state", "stats", "grad")

    def mixed(self, model):
        """Modes and flags as someone might have left them."""
        model.trunk[3].eval()
        model.old.eval()
        model.trunk[0].weight.requires_grad_(False)
        model.new.bias.requires_grad_(False)
        return model

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    @pytest.mark.parametrize("levels", [("state",) * 3, ("stats", "state", "grad"), ("grad", "stats", "state")])
    def test_every_order_of_release_brings_back_what_was_there(self, model, images, train, order, levels, state):
        self.mixed(model)
        before = state(model)
        holds = [fl.freeze(model, *part, level=level) for part, level in zip(self.PARTS, levels, strict=True)]
        for i in order:
            for other in holds:
                if not other.released:
                    other.verify()
            holds[i].thaw()
        assert state(model) == before

    def test_holds_made_and_released_crosswise(self, model, state):
        self.mixed(model)
        before = state(model)
        a = fl.freeze(model, "trunk")
        b = fl.freeze(model, "trunk.1", lock="hard")
        a.thaw()
        c = fl.freeze(model, "*")
        b.thaw()
        assert not any(m.training for m in model.train().modules())
        c.verify()
        c.thaw()
        assert state(model) == before

    def test_partial_thaw(self, model, images, train, state):
        self.mixed(model)
        before = state(model)
        hold = fl.freeze(model, "trunk", "old")
        count = len(hold.paths)
        hold.thaw("trunk.1")
        assert len(hold.paths) < count
        assert not any(path.startswith("trunk.1") for path in hold.paths)
        model.train()
        assert model.trunk[1].training
        assert model.trunk.training  # it lost a part, so it is no longer kept itself
        assert not model.trunk[0].training
        assert not model.old.training
        model(images)
        hold.verify()
        hold.thaw("old")
        hold.thaw("trunk")
        assert hold.released
        model.train(True)
        self.mixed(model)
        model.trunk[1].reset_running_stats()
        assert state(model) == before

    def test_partial_thaw_of_a_nested_hold_keeps_the_other(self, model):
        inner, outer = fl.freeze(model, "trunk.1"), fl.freeze(model, "trunk")
        outer.thaw("trunk.1")
        assert not model.train().trunk[1].training
        inner.verify()
        outer.verify()

    def test_partial_thaw_of_everything_is_a_thaw(self, model):
        hold = fl.freeze(model, "trunk")
        hold.thaw("*")
        assert hold.released
        hold.thaw()  # a second time does nothing
        hold.thaw("trunk")

    def test_thaw_of_what_is_not_held(self, model):
        hold = fl.freeze(model, "trunk")
        with pytest.raises(NothingSelected, match="nothing of what this hold holds is selected"):
            hold.thaw("old")
        with pytest.raises(NothingSelected, match="nearest names"):
            hold.thaw("trunc")
        hold.verify()

    def test_partial_thaw_does_not_claim_modules_that_are_new(self, model):
        hold = fl.freeze(model, "*")
        model.trunk.append(nn.Dropout())
        hold.thaw("old")
        hold.verify()
        assert not any(path.startswith("trunk.5") for path in hold.paths)
        hold.refresh()
        assert "trunk.5.training" in hold.paths

    def test_statistics_cannot_be_left_without_their_layer(self, model):
        hold = fl.freeze(model, "trunk")
        with pytest.raises(CannotFreeze, match="single buffer of a BatchNorm2d"):
            hold.thaw("trunk.1.weight")
        assert not model.train().trunk[1].training
        hold.verify()

    def test_partial_thaw_of_a_parameter(self, model, images, train):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        hold = fl.freeze(model, "old", optimizer=optimizer)
        hold.thaw("old.bias")
        bias = model.old.bias.clone()
        train(model, images, optimizer)
        assert not torch.equal(model.old.bias, bias)
        hold.verify()
        assert hold.paths == ["old.weight", "old.weight.requires_grad"]


class TestRefresh:
    def test_after_load_state_dict(self, model, images, train):
        hold = fl.freeze(model, "trunk")
        other = type(model)()
        model.load_state_dict(other.state_dict())
        with pytest.raises(FrozenStateMoved):
            hold.verify()
        hold.refresh()
        hold.verify()

    def test_after_load_with_assign(self, model, images, train):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        hold = fl.freeze(model, "trunk", optimizer=optimizer)
        model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}, assign=True)
        with pytest.raises(FrozenStateMoved) as caught:
            hold.verify()
        assert "trunk.0.weight" in caught.value.diff.paths
        hold.refresh()
        assert not any(p.requires_grad for p in model.trunk.parameters())
        train(model, images)
        hold.verify()
        hold.thaw()
        assert all(p.requires_grad for p in model.trunk.parameters())

    def test_after_an_embedding_was_resized(self):
        model = nn.ModuleDict({"embed": nn.Embedding(4, 2)})
        hold = fl.freeze(model, "embed")
        model["embed"].weight = nn.Parameter(torch.cat([model["embed"].weight, torch.zeros(1, 2)]))
        with pytest.raises(FrozenStateMoved, match="retyped"):
            hold.verify()
        hold.refresh()
        hold.verify()
        assert not model["embed"].weight.requires_grad
        hold.thaw()
        assert model["embed"].weight.requires_grad

    def test_after_a_module_was_swapped(self, model):
        hold = fl.freeze(model, "trunk")
        model.trunk[1] = nn.BatchNorm2d(4)
        with pytest.raises(FrozenStateMoved, match="unlocked"):
            hold.verify()
        hold.refresh()
        assert not model.train().trunk[1].training
        hold.verify()

    def test_makes_locks_good_again(self, model):
        hold = fl.freeze(model, "trunk", lock="hard")
        del model.trunk[3].train
        model.trunk[3].train()
        with pytest.raises(FrozenStateMoved, match=r"trunk\.3\.training"):
            hold.verify()
        hold.refresh()
        hold.verify()
        hold.thaw()
        assert model.trunk[3].training
        assert "train" not in model.trunk[3].__dict__

    @pytest.mark.parametrize("bad", [nn.LazyLinear(2), nn.Linear(2, 2, device="meta")], ids=["lazy", "meta"])
    def test_that_fails_leaves_the_hold_as_it_was(self, model, bad):
        hold = fl.freeze(model, "trunk")
        model.trunk.append(bad)
        paths = hold.paths
        with pytest.raises((CannotFreeze, CannotDigest)):
            hold.refresh()
        assert hold.paths == paths
        assert "train" not in bad.__dict__
        assert all(p.requires_grad for p in bad.parameters())
        del model.trunk[5]
        hold.verify()

    def test_released(self, model):
        hold = fl.freeze(model, "trunk")
        hold.thaw()
        for verb in (hold.verify, hold.refresh, hold.diff):
            with pytest.raises(HoldReleased, match="because it was thawed"):
                verb()

    def test_model_gone(self):
        model = nn.Linear(1, 1)
        hold = fl.freeze(model, "")
        del model
        with pytest.raises(HoldReleased, match="its model no longer exists"):
            hold.verify()
        assert hold.released
        hold.thaw()


class TestFrozen:
    def test_restores_and_verifies(self, model, images, train, state):
        before = state(model)
        with fl.frozen(model, "trunk") as hold:
            train(model, images)
            assert not model.trunk.training
            assert hold.paths
        assert hold.released
        assert state(model) == before

    def test_verifies_at_the_end_and_thaws_even_then(self, model):
        with pytest.raises(FrozenStateMoved, match=r"trunk\.0\.bias"), fl.frozen(model, "trunk"), torch.no_grad():
            model.trunk[0].bias.add_(1)
        assert model.trunk[0].bias.requires_grad
        assert model.trunk.training

    def test_restores_on_exceptions_and_lets_them_through(self, model, state):
        before = state(model)
        with pytest.raises(KeyError, match="own"), fl.frozen(model, "*"):
            model.trunk[1].running_mean.add_(0)
            raise KeyError("own")
        assert state(model) == before

    def test_error_of_the_block_is_not_hidden_by_what_moved(self, model):
        with pytest.raises(KeyError), fl.frozen(model, "trunk"):
            model.trunk[1].running_mean.add_(1)
            raise KeyError

    def test_thawed_within(self, model):
        with fl.frozen(model, "trunk", "old") as hold:
            hold.thaw("old")
        with fl.frozen(model, "trunk") as hold:
            hold.thaw()


def write_numpy(model):
    model.trunk[0].weight.detach().numpy()[0] += 1


def write_fused(model):
    model.old.weight.requires_grad_(True)
    optimizer = torch.optim.Adam([model.old.weight], lr=0.1, fused=True)
    model.old.weight.grad = torch.ones_like(model.old.weight)
    optimizer.step()
    model.old.weight.requires_grad_(False)


MOVES = {
    "buffer": (lambda m: m.trunk[1].running_mean.add_(1), "trunk.1.running_mean"),
    "buffer replaced": (lambda m: setattr(m.trunk[1], "running_var", torch.zeros(4)), "trunk.1.running_var"),
    ".data": (lambda m: m.trunk[0].weight.data.mul_(2), "trunk.0.weight"),
    "sign of zero": (lambda m: m.trunk[1].bias.data.neg_(), "trunk.1.bias"),
    "numpy": (write_numpy, "trunk.0.weight"),
    "fused optimizer": (write_fused, "old.weight"),
    "mode": (lambda m: setattr(m.trunk[3], "training", True), "trunk.3.training"),
    "requires_grad": (lambda m: m.old.bias.requires_grad_(True), "old.bias.requires_grad"),
    "module replaced": (lambda m: setattr(m, "old", copy.deepcopy(nn.Linear(64, 3).eval())), "old.weight"),
    "equal module replaced": (
        lambda m: setattr(m, "old", nn.Linear(64, 3).eval().requires_grad_(False)),
        "old.training",
    ),
    "module removed": (lambda m: delattr(m, "old"), "old.weight"),
    "parameter replaced": (
        lambda m: m.load_state_dict(
            {k: v.clone() for k, v in m.state_dict().items()} | {"old.bias": torch.ones(3)}, assign=True
        ),
        "old.bias",
    ),
    "guard removed": (lambda m: m.trunk[3].__dict__.pop("train"), "trunk.3.training"),
    "guard replaced": (lambda m: setattr(m.trunk[3], "train", lambda mode=True: None), "trunk.3.training"),
    "dropout rate": (lambda m: setattr(m.trunk[3], "p", 0.0), "trunk.3.p"),
    "momentum": (lambda m: setattr(m.trunk[1], "momentum", 0.5), "trunk.1.momentum"),
    "dtype": (lambda m: m.old.half(), "old.weight"),
}


class TestVerify:
    @pytest.mark.parametrize("name", MOVES)
    def test_sees(self, model, name):
        write, path = MOVES[name]
        hold = fl.freeze(model, "trunk", "old")
        hold.verify()
        write(model)
        with pytest.raises(FrozenStateMoved) as caught:
            hold.verify()
        assert path in caught.value.diff.paths
        assert path in str(caught.value)

    @pytest.mark.parametrize("name", ["buffer", "mode", "requires_grad", "guard removed"])
    def test_buffers_only_sees_these(self, model, name):
        write, path = MOVES[name]
        hold = fl.freeze(model, "trunk", "old")
        hold.verify("buffers")
        write(model)
        with pytest.raises(FrozenStateMoved) as caught:
            hold.verify("buffers")
        assert path in caught.value.diff.paths

    def test_buffers_only_does_not_look_at_parameters(self, model):
        hold = fl.freeze(model, "trunk", "old")
        MOVES[".data"][0](model)
        hold.verify("buffers")
        with pytest.raises(FrozenStateMoved):
            hold.verify()

    def test_does_not_look_beyond_the_hold(self, model):
        hold = fl.freeze(model, "trunk")
        model.old.weight.data.add_(1)
        model.old.extra = nn.Linear(1, 1)
        hold.verify()

    def test_reads_only(self, model, state, bytes_of):
        hold = fl.freeze(model, "trunk")
        rng, before = torch.get_rng_state(), state(model)
        hold.verify()
        assert torch.equal(torch.get_rng_state(), rng)
        assert state(model) == before

    def test_says_by_how_much_buffers_moved(self, model):
        hold = fl.freeze(model, "trunk")
        model.trunk[1].running_mean[0] += 2
        (row,) = hold.diff().moved
        assert (row.max_abs, row.mean_abs, row.role) == (2.0, 0.5, "norm.mean")

    def test_message(self):
        model = nn.Sequential(nn.BatchNorm1d(2))
        hold = fl.freeze(model, "0", level="stats")
        model[0].running_mean.add_(1)
        with pytest.raises(FrozenStateMoved) as caught:
            hold.verify()
        assert str(caught.value) == (
            "1 of 4 held entries moved: 0.running_mean\n"
            "1 entries moved, 3 equal to the bit\n"
            "path            role       module       change   max |Δ|  mean |Δ|\n"
            "──────────────  ─────────  ───────────  ───────  ───────  ────────\n"
            "0.running_mean  norm.mean  BatchNorm1d  changed  1        1"
        )
        other = pickle.loads(pickle.dumps(caught.value))
        assert other.diff == caught.value.diff


class TestNoCycle:
    """A deleted model frees its memory at once; the garbage collector is off."""

    @pytest.fixture(autouse=True)
    def _without_collector(self):
        gc.collect()
        gc.disable()
        yield
        gc.enable()

    @pytest.mark.parametrize("kind", ["soft", "hard"])
    @pytest.mark.parametrize("keep", ["hold alive", "hold dropped", "hold on the model", "hold on a child"])
    def test_memory_goes_at_once(self, model, kind, keep, images):
        model = type(model)()
        optimizer = torch.optim.SGD(model.new.parameters(), lr=0.1)
        hold = fl.freeze(
            model, model.trunk, model.old.weight, lock=kind, optimizer=optimizer, probe=images,
            handlers={nn.Flatten: KeepTensors()},
        )  # fmt: skip
        model.train()(images)
        hold.verify()
        if keep == "hold on the model":
            model.hold = hold
        if keep == "hold on a child":
            model.trunk.hold = hold
        if keep != "hold alive":
            del hold
        watched = [
            weakref.ref(thing) for thing in (model, model.trunk[1], model.trunk[1].running_mean, model.old.weight)
        ]
        del model
        assert [reference() for reference in watched] == [None] * 4

    def test_naive_closure_fails_that_check(self):
        layer = nn.Dropout()
        layer.train = layer.eval  # a bound method refers to the layer
        watched = weakref.ref(layer)
        del layer
        assert watched() is not None


class TestHoldsOn:
    def test_deepcopy(self, model, images, train):
        hold = fl.freeze(model, "trunk")
        other = copy.deepcopy(model)
        (found,) = holds_on(other)
        assert (found.token, found.level, found.paths) == (hold.token, "state", hold.paths)
        found.thaw()
        assert other.train().trunk[1].training
        assert holds_on(other) == []
        assert not model.train().trunk[1].training
        hold.verify()

    def test_pickle(self, model):
        fl.freeze(model, "trunk", level="state")
        fl.freeze(model, "old", level="grad")
        fl.freeze(model, "*", level="stats")
        other = pickle.loads(pickle.dumps(model))
        found = {hold.level: hold for hold in holds_on(other)}
        assert set(found) == {"state", "grad", "stats"}
        for hold in found.values():
            hold.verify()
        for hold in found.values():
            hold.thaw()
        assert all(m.training for m in other.train().modules())
        assert all(p.requires_grad for p in other.parameters())

    def test_a_hold_kept_by_the_model_is_copied_with_it(self, model, images):
        model.hold = fl.freeze(model, "trunk", optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other.hold is not model.hold
            other.hold.verify()
            other.hold.thaw()
            assert other.train().trunk.training
            assert not model.train().trunk.training
            model.hold.verify()

    def test_partial_thaw_of_a_found_hold(self, model):
        fl.freeze(model, "trunk", "old")
        (found,) = holds_on(copy.deepcopy(model))
        assert found.released  # that copy is gone already
        other = copy.deepcopy(model)
        (found,) = holds_on(other)
        found.thaw("old")
        assert other.train().old.training
        assert not other.trunk[1].training
        found.verify()
        found.refresh()

    def test_the_step_guard_rests_after_a_thaw_by_a_found_hold(self, model, images, train):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fl.freeze(model, "trunk", optimizer=optimizer)
        holds_on(model)[0].thaw()
        weight = model.trunk[0].weight.clone()
        train(model, images, optimizer)
        assert not torch.equal(model.trunk[0].weight, weight)

    def test_custom_handlers_are_found_too(self, ungated_codebook):
        model = nn.Sequential(ungated_codebook())
        fl.freeze(model, "0", handlers={ungated_codebook: KeepTensors()})
        other = copy.deepcopy(model)
        (found,) = holds_on(other)
        other(torch.randn(5, 6))
        found.verify()
        found.thaw()
        other(torch.randn(5, 6))
        assert not torch.equal(other[0].codes, model[0].codes)
