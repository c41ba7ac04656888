"""The lock, against everything that copies, traces, compiles or rebuilds a model (row M6' of the table of facts)."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import frostline as fl
from frostline.attach.ledger import KEY
from frostline.errors import CannotFreeze, FrozenStateMoved
from frostline.freezing import holds_on, safe_convert_sync_batchnorm
from frostline.freezing.mode_lock import HardLocked, is_locked, lock, unlock

LOCKS = ["soft", "hard"]


def build():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout()), nn.Flatten(), nn.Linear(64, 2)
    )


@pytest.fixture
def model():
    return build()


@pytest.fixture
def x():
    return torch.randn(2, 3, 6, 6)


def modes(model):
    return {path: module.training for path, module in model.named_modules()}


def assert_held(model, x):
    """Whatever calls train(), the held part is in eval mode and its statistics stay."""
    for caller in (model, model[0], model[0][1]):
        caller.train()
        assert not any(m.training for m in model[0].modules())
    mean = model[0][1].running_mean.clone()
    model(x)
    assert torch.equal(model[0][1].running_mean, mean)


@pytest.mark.parametrize("kind", LOCKS)
class TestBothLocks:
    def test_train_and_eval(self, model, x, kind):
        fl.freeze(model, "0", lock=kind)
        assert_held(model, x)
        assert model.train() is model
        assert model[0].train() is model[0]
        assert model[0].eval() is model[0]
        assert model.training
        assert model[2].training
        assert not model.eval()[2].training

    def test_mode_must_be_a_boolean_as_in_torch(self, model, kind):
        fl.freeze(model, "0", lock=kind)
        with pytest.raises(ValueError, match="training mode is expected to be boolean"):
            model[0].train("yes")

    def test_types_state_dict_and_parameters_stay(self, model, kind):
        keys, parameters, types = list(model.state_dict()), list(model.parameters()), list(map(type, model.modules()))
        fl.freeze(model, "0", lock=kind)
        assert list(model.state_dict()) == keys
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert all(isinstance(m, t) for m, t in zip(model.modules(), types, strict=True))
        assert [type(m).__name__ for m in model.modules()] == [t.__name__ for t in types]
        if kind == "soft":
            assert list(map(type, model.modules())) == types

    def test_thaw_leaves_no_trace(self, model, kind):
        model[0][3].eval()
        before = {p: (type(m), dict(m.__dict__)) for p, m in model.named_modules()}
        fl.freeze(model, "0", lock=kind).thaw()
        assert {p: (type(m), dict(m.__dict__)) for p, m in model.named_modules()} == before

    def test_deepcopy(self, model, x, kind):
        hold = fl.freeze(model, "0", lock=kind)
        other = copy.deepcopy(model)
        assert_held(other, x)
        holds_on(other)[0].thaw()
        assert other.train()[0][1].training
        assert_held(model, x)
        hold.verify()

    def test_a_copy_never_drives_the_original(self, model, x, kind):
        hold = fl.freeze(model, "0", lock=kind)
        other = copy.deepcopy(model)
        hold.thaw()
        model.train()
        other.train()
        other[0][1].train()
        assert all(modes(model).values())
        assert_held(other, x)

    @pytest.mark.parametrize("how", ["pickle", "torch.save"])
    def test_pickle(self, model, x, kind, how):
        hold = fl.freeze(model, "0", lock=kind)
        file = io.BytesIO()
        (pickle.dump if how == "pickle" else torch.save)(model, file)
        file.seek(0)
        other = pickle.load(file) if how == "pickle" else torch.load(file, weights_only=False)
        assert_held(other, x)
        assert [type(m).__name__ for m in other.modules()] == [type(m).__name__ for m in model.modules()]
        hold.thaw()
        model.train()
        other.train()
        assert all(modes(model).values())
        assert [type(h.level) for h in holds_on(other)] == [str]
        holds_on(other)[0].thaw()
        assert all(modes(other.train()).values())

    def test_fx_trace(self, model, x, kind):
        hold = fl.freeze(model, "0", lock=kind)
        graph = torch.fx.symbolic_trace(model)
        graph.train()
        leaves = [graph.get_submodule(f"0.{i}") for i in range(4)]
        assert not any(leaf.training for leaf in leaves)
        assert [node.op for node in graph.graph.nodes].count("call_module") == 6
        graph(x)
        copy.deepcopy(graph).train()(x)
        hold.verify()

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    @pytest.mark.parametrize("order", ["compile first", "freeze first"])
    def test_compile(self, model, x, kind, backend, order):
        torch.compiler.reset()  # traces of other tests fit the same code
        if order == "freeze first":
            hold = fl.freeze(model, "0", lock=kind)
        compiled = torch.compile(model, backend=backend)
        compiled.train()
        compiled(x).sum().backward()
        if order == "compile first":
            assert model[0][1].num_batches_tracked == 1
            hold = fl.freeze(compiled, "0", lock=kind)  # the wrapper is looked through
            expected = model.eval()(x)
            assert torch.equal(compiled(x), expected)
        for _ in range(2):
            compiled.train()
            compiled(x).sum().backward()
        hold.verify()
        hold.thaw()
        compiled.train()
        count = int(model[0][1].num_batches_tracked)
        compiled(x)
        assert model[0][1].num_batches_tracked == count + 1

    @pytest.mark.slow
    def test_export(self, model, x, kind):
        hold = fl.freeze(model, "0", lock=kind)
        model.train()
        exported = torch.export.export(model, (x,)).module()
        count = int(model[0][1].num_batches_tracked)
        assert torch.allclose(exported(x), model(x))
        assert exported.get_buffer("0.1.num_batches_tracked") == count
        hold.verify()

    def test_jit_trace(self, model, x, kind):
        hold = fl.freeze(model, "0", lock=kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            traced = torch.jit.trace(model.eval(), x)
        traced.train()
        traced(x)
        hold.verify()

    def test_jit_script_is_a_known_limit_that_verify_sees(self, model, x, kind):
        """The compiled module has a `train` of its own, in which no Python is left."""
        hold = fl.freeze(model, "0", lock=kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            scripted = torch.jit.script(model)
        scripted.train()
        scripted(x)
        with pytest.raises(FrozenStateMoved, match=r"0\.1\.running_mean"):
            hold.verify()

    def test_fuse_conv_bn(self, model, x, kind):
        hold = fl.freeze(model, "0", lock=kind)
        fused = fuse_conv_bn_eval(model[0][0], model[0][1])
        expected = model[0][1](model[0][0](x))
        # Folding rounds once more per weight: a few units in the last place of values near 1.
        assert torch.allclose(fused(x), expected, atol=1e-5)
        assert not fused.train().training
        assert not fused.weight.requires_grad
        hold.verify()

    def test_convert_sync_batchnorm(self, model, x, kind):
        hold = fl.freeze(model, "0", lock=kind)
        hold_head = model[2]
        assert safe_convert_sync_batchnorm(model) is model
        assert type(model[0][1]).__name__ == "BatchNorm2d"
        assert model[2] is hold_head
        hold.verify()
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # torch's own rebuilds the layer
        assert isinstance(model[0][1], nn.SyncBatchNorm)
        model[0].train()
        with pytest.raises(FrozenStateMoved, match=r"0\.1\.training"):
            hold.verify()


class TestSoft:
    def test_ao_fuse_modules(self, model, x):
        from torch.ao.quantization import fuse_modules

        hold = fl.freeze(model, "0")
        model.eval()
        fused = fuse_modules(model, [["0.0", "0.1", "0.2"]])
        assert torch.allclose(fused(x), model(x), atol=1e-5)
        fused.train()
        assert not any(m.training for m in fused[0][0].children())  # conv with the norm folded in, relu
        assert fused[0][0][0].weight.requires_grad is False
        hold.verify()

    def test_a_direct_write_is_not_stopped_but_seen_and_healed_by_train(self, model):
        hold = fl.freeze(model, "0")
        model[0][1].training = True
        with pytest.raises(FrozenStateMoved) as caught:
            hold.verify()
        assert caught.value.diff.paths == ["0.1.training"]
        model.train()
        hold.verify()

    def test_a_shallow_copy_does_not_change_the_original(self):
        layer = nn.BatchNorm1d(2)
        hold = fl.freeze(layer, "")
        other = copy.copy(layer)
        other.train()
        assert not layer.training
        hold.verify()
        hold.thaw()
        assert layer.training
        other.train()
        other.eval()
        assert layer.training  # released: the guard that went with the copy must not drive it any more
        assert not other.training
        assert not is_locked(other)

    def test_a_shallow_copy_under_the_same_name_is_not_taken_for_held(self, model):
        hold = fl.freeze(model, "0")
        model[0][1] = copy.copy(model[0][1])
        with pytest.raises(FrozenStateMoved, match="unlocked"):
            hold.verify()

    def test_a_held_graph_module_can_be_saved_and_copied(self, model, x):
        graph = torch.fx.symbolic_trace(model)
        hold = fl.freeze(graph, "*")
        file = io.BytesIO()
        torch.save(graph, file)
        file.seek(0)
        for other in (torch.load(file, weights_only=False), copy.deepcopy(graph)):
            other.train()
            mean = other.get_buffer("0.1.running_mean").clone()
            assert torch.equal(other(x), graph(x))
            assert torch.equal(other.get_buffer("0.1.running_mean"), mean)
        hold.verify()

    def test_a_train_method_of_the_users_own_is_put_back(self):
        layer = nn.Dropout()
        own = layer.train = lambda mode=True: layer
        hold = fl.freeze(layer, "")
        assert layer.train is not own
        hold.thaw()
        assert layer.train is own

    def test_a_train_method_that_someone_put_there_since_is_left_alone(self):
        layer = nn.Dropout()
        hold = fl.freeze(layer, "")
        later = layer.train = lambda mode=True: layer
        assert hold.diff().paths == ["training"]
        hold.thaw()
        assert layer.train is later

    def test_an_overridden_train_of_the_class_does_not_undo_the_hold(self):
        class Merging(nn.Dropout):
            merged = 0

            def train(self, mode=True):
                self.merged += 1
                return super().train(mode)

        layer = Merging()
        hold = fl.freeze(layer, "")
        layer.train()
        assert (layer.training, layer.merged) == (False, 0)
        hold.thaw()
        assert layer.train().merged == 1

    def test_data_parallel_wrapper(self, model, x):
        wrapped = nn.DataParallel(model)
        hold = fl.freeze(wrapped, "0")
        wrapped.train()
        wrapped(x)
        assert model.training
        hold.verify()


class TestHard:
    def test_a_direct_write_does_nothing(self, model, x):
        hold = fl.freeze(model, "0", lock="hard")
        for module in model.modules():
            module.training = True
        model(x)
        assert model.training
        assert not any(m.training for m in model[0].modules())
        hold.verify()

    def test_soft_lock_fails_that_check(self, model):
        fl.freeze(model, "0", lock="soft")
        for module in model.modules():
            module.training = True
        assert all(m.training for m in model[0].modules())

    def test_nested_with_soft_in_every_order(self, model):
        for first, second in (("soft", "hard"), ("hard", "soft")):
            for last in (0, 1):
                holds = [fl.freeze(model, "0", lock=first), fl.freeze(model, "0", lock=second)]
                holds[1 - last].thaw()
                assert not any(m.training for m in model.train()[0].modules())
                holds[last].thaw()
                assert not any(isinstance(m, HardLocked) or KEY in m.__dict__ for m in model.modules())
                assert all(modes(model).values())

    def test_pickling_honours_getstate(self):
        other = pickle.loads(pickle.dumps(Forgetful().eval()))
        assert not hasattr(other, "cache")
        layer = Forgetful()
        fl.freeze(layer, "", lock="hard")
        other = pickle.loads(pickle.dumps(layer))
        assert not hasattr(other, "cache")
        assert isinstance(other, HardLocked)
        assert not other.train().training

    def test_shallow_copy_is_locked_too(self):
        layer = nn.BatchNorm1d(2)
        fl.freeze(layer, "", lock="hard")
        other = copy.copy(layer)
        other.training = True
        assert not other.training

    def test_graph_module_is_refused_and_left_alone(self, model):
        graph = torch.fx.symbolic_trace(model)
        before = modes(graph)
        with pytest.raises(CannotFreeze, match="keeps its code on its class"):
            fl.freeze(graph, "*", lock="hard")
        assert modes(graph) == before
        fl.freeze(graph, "0", lock="hard").verify()

    def test_ao_fusing_goes_by_exact_types_and_refuses(self, model):
        from torch.ao.quantization import fuse_modules

        fl.freeze(model, "0", lock="hard")
        with pytest.raises(AssertionError, match="did not find fuser method"):
            fuse_modules(model.eval(), [["0.0", "0.1", "0.2"]])

    def test_a_class_put_on_top_since_survives_the_thaw(self):
        layer = nn.BatchNorm1d(2)
        hold = fl.freeze(layer, "", lock="hard")
        layer.__class__ = type("OnTop", (type(layer),), {"extra": 1})  # as FSDP2 and parametrize do
        assert not layer.train().training
        hold.thaw()
        assert not isinstance(layer, HardLocked)
        assert (type(layer).__name__, layer.extra, layer.training) == ("OnTop", 1, True)


class Forgetful(nn.Module):
    """Leaves something out of its pickle."""

    def __init__(self):
        super().__init__()
        self.cache = (lambda: None,)

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "cache"}


def test_lock_and_unlock_by_themselves():
    layer = nn.Dropout()
    before = lock(layer, hard=False)
    assert before == (True, None)
    assert is_locked(layer)
    unlock(layer, before)
    assert not is_locked(layer)
    assert layer.training
