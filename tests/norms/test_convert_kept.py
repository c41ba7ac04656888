"""What a conversion leaves as it was, and that it happens whole or not at all."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import frostline as fl
from frostline.errors import CannotConvert, FrozenStateMoved, NothingSelected
from frostline.norms.convert import FrozenBatchNorm, FrozenNorm, GroupNorm, NoTracking, SyncNorm, convert, plan_convert
from frostline.norms.convert.replacement import Replacement
from frostline.norms.domain_split import split_domains

TARGETS = [FrozenNorm(), GroupNorm(), SyncNorm(), NoTracking()]
by_target = pytest.mark.parametrize("to", TARGETS, ids=lambda to: type(to).__name__)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))


def state_of(model):
    """Every module object, every tensor object with its bytes, and all modes."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {path: id(module) for path, module in model.named_modules()},
        {
            path: (id(tensor), tensor.detach().clone().tolist(), tensor.requires_grad)
            for path, tensor in tensors.items()
        },
        {path: module.training for path, module in model.named_modules()},
        {
            path: {k: v for k, v in vars(m).items() if isinstance(v, (int, float, str, bool))}
            for path, m in model.named_modules()
        },
    )


class TestKept:
    @by_target
    def test_everything_but_the_layers(self, to):
        model = net()
        model[1].eval()
        model[4].bias.requires_grad_(False)
        model[4].tag = "mine"
        modules, _, modes, _ = state_of(model)
        parameters = dict(model.named_parameters())
        buffers = dict(model.named_buffers())
        requires = {path: p.requires_grad for path, p in parameters.items()}
        convert(model, to)
        after, _, modes_after, _ = state_of(model)
        assert {path for path in after if after[path] != modules[path]} == {"1", "4"}
        assert modes_after == modes
        assert all(p is parameters[path] for path, p in model.named_parameters())
        assert {path: p.requires_grad for path, p in model.named_parameters()} == requires
        assert all(b is buffers[path] for path, b in model.named_buffers())
        assert model[4].tag == "mine"

    @by_target
    def test_a_step_of_an_optimizer_built_before_trains_what_the_model_uses(self, to):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        convert(model, to)
        before = {path: p.detach().clone() for path, p in model.named_parameters()}
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        moved = {path for path, p in model.named_parameters() if not torch.equal(p, before[path])}
        # A bias before a batch norm has no gradient but rounding; whatever that is.
        assert {"1.weight", "1.bias", "4.weight", "4.bias"} <= moved

    @by_target
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_types_and_devices(self, to, dtype):
        model = net().to(dtype)
        convert(model, to)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert {b.dtype for b in model.buffers()} <= {dtype, torch.int64}
        meta = net().to("meta")
        convert(meta, to)
        assert {t.device.type for t in (*meta.parameters(), *meta.buffers())} == {"meta"}

    def test_hooks_of_state_dicts_know_the_new_layer(self):
        model = nn.Sequential(nn.BatchNorm1d(3))
        old, seen = model[0], []
        old.register_load_state_dict_pre_hook(lambda module, *args: seen.append(module))
        old.register_state_dict_pre_hook(lambda module, *args: seen.append(module))
        result = convert(model, SyncNorm())
        model.load_state_dict(model.state_dict())
        assert seen == [model[0], model[0]]
        assert model[0] is not old
        result.undo()
        model.load_state_dict(model.state_dict())
        assert seen[2:] == [old, old]

    def test_a_hook_added_meanwhile_stays_on_undo(self):
        model, seen = nn.Sequential(nn.BatchNorm1d(3)), []
        result = convert(model, FrozenNorm())
        handle = model[0].register_forward_hook(lambda module, args, out: seen.append(type(module).__name__))
        result.undo()
        model(torch.randn(4, 3))
        handle.remove()
        model(torch.randn(4, 3))
        assert seen == ["BatchNorm1d"]


class TestWhich:
    def test_selectors(self):
        model = net()
        assert [row.path for row in plan_convert(model, FrozenNorm(), "4").rows] == ["4"]
        assert [row.path for row in plan_convert(model, FrozenNorm(), "!4").rows] == ["1"]
        with pytest.raises(NothingSelected):
            plan_convert(model, FrozenNorm(), "bn")

    def test_a_shared_layer_selected_under_one_name_is_converted_under_both(self):
        shared = nn.BatchNorm1d(3)
        model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
        convert(model, FrozenNorm(), "b")
        assert model["a"][0] is model["b"][0]
        assert type(model["a"][0]).__name__ == "FrozenBatchNorm"

    @by_target
    @pytest.mark.parametrize("level", ["state", "stats", "grad"])
    def test_held_layers_are_left_alone_and_named(self, to, level):
        model = net()
        hold = fl.freeze(model, "1", level=level)
        held = model[1]
        result = convert(model, to)
        assert model[1] is held
        assert dict(result.plan.skipped) == {"1": f"held (level {level})"}
        hold.verify()
        hold.thaw()
        convert(model, to)
        assert model[1] is not held

    def test_torchs_converter_takes_a_held_layer_away(self):
        model = net()
        hold = fl.freeze(model, "1")
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        with pytest.raises(FrozenStateMoved):
            hold.verify()

    def test_a_replaced_forward(self):
        model = net()
        split_domains(model, ["a", "b"], "1")
        model[4].train = lambda mode=True: model[4]
        with pytest.raises(
            CannotConvert, match="1: its forward has been replaced by a DomainForward\n  4: its train has"
        ):
            convert(model, FrozenNorm())

    @pytest.mark.parametrize("how", ["parametrized", "pruned"])
    def test_a_weight_that_is_computed(self, how):
        model = net()
        if how == "parametrized":
            parametrize.register_parametrization(model[1], "weight", nn.Softplus())
        else:
            prune.l1_unstructured(model[1], "weight", amount=2)
        plan = plan_convert(model, FrozenNorm())
        assert plan.skipped["1"] == "its weight is computed from other tensors (parametrized or pruned)"

    @pytest.mark.parametrize("container", [list, tuple, lambda layers: {"a": layers[0]}, lambda layers: layers[0]])
    def test_a_reference_that_torch_does_not_know(self, container):
        """Replacing the child alone would leave the old layer in use, silently."""

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.bn = nn.BatchNorm1d(3)
                self.__dict__["used"] = container([self.bn])

            def forward(self, x):
                used = self.used
                layer = (
                    used
                    if isinstance(used, nn.Module)
                    else next(iter(used.values() if isinstance(used, dict) else used))
                )
                return layer(x)

        naive = Net()
        naive.bn = convert(naive.bn, FrozenNorm()).model
        naive(torch.randn(4, 3))
        assert naive.bn.num_batches_tracked == 1
        with pytest.raises(CannotConvert, match="'used' refers to it"):
            convert(Net(), FrozenNorm())

    def test_a_layer_compiled_by_itself(self):
        for model in (
            nn.Sequential(torch.compile(nn.BatchNorm1d(3), backend="eager")),
            nn.Sequential(nn.BatchNorm1d(3)),
        ):
            if not hasattr(model[0], "_orig_mod"):
                model[0].compile(backend="eager")
            with pytest.raises(CannotConvert, match="compiled by itself"):
                convert(model, FrozenNorm())

    @by_target
    def test_lazy_layers_are_refused_by_name(self, to):
        model = nn.Sequential(nn.BatchNorm1d(3), nn.LazyBatchNorm1d())
        before = model[0]
        with pytest.raises(CannotConvert, match=r"1 \(LazyBatchNorm1d\)"):
            convert(model, to)
        assert model[0] is before
        convert(model, to, "0")

    @pytest.mark.parametrize("to", [FrozenNorm, "frozen", nn.GroupNorm])
    def test_something_else_than_a_target(self, to):
        with pytest.raises(CannotConvert, match=r"FrozenNorm\(\)"):
            convert(net(), to)

    def test_nothing_to_convert(self):
        with pytest.raises(CannotConvert, match="there is no normalization layer"):
            convert(nn.Linear(2, 2), FrozenNorm())
        with pytest.raises(CannotConvert, match="0: LayerNorm is not known to normalize with the batch"):
            convert(nn.Sequential(nn.LayerNorm(2)), FrozenNorm())


class TestWhole:
    """Either all layers are converted, or none."""

    def test_an_exception_in_the_middle(self, monkeypatch):
        model, real = net(), Replacement.carry_out

        def carry_out(self):
            real(self)
            if self.path == "4":
                raise KeyboardInterrupt

        before = state_of(model)
        monkeypatch.setattr(Replacement, "carry_out", carry_out)
        with pytest.raises(KeyboardInterrupt):
            convert(model, GroupNorm())
        assert state_of(model) == before
        monkeypatch.undo()
        convert(model, GroupNorm())

    def test_what_comes_out_wrong_is_seen_by_value_and_taken_back(self):
        model = net()
        before = state_of(model)
        wrong = type(
            "Wrong", (FrozenBatchNorm,), {"forward": lambda self, x: super(type(self), self).forward(x) + 1e-6}
        )
        plan = plan_convert(model, FrozenNorm())
        object.__setattr__(plan.steps[1].recipe, "cls", wrong)
        with pytest.raises(CannotConvert, match="'4' did not come out right: its output in eval mode is another"):
            plan.apply()
        assert state_of(model) == before

    @pytest.mark.parametrize("fault", ["parameter", "buffer", "mode"])
    def test_state_that_comes_out_wrong(self, fault, monkeypatch):
        model = net()
        before, real = state_of(model), Replacement.carry_out

        def carry_out(self):
            real(self)
            if self.path == "1" and fault == "parameter":
                self.new.weight = nn.Parameter(self.new.weight.detach().clone())
            elif self.path == "1" and fault == "buffer":
                self.new.running_mean = self.new.running_mean.clone()
            elif self.path == "1":
                self.new.eval()

        monkeypatch.setattr(Replacement, "carry_out", carry_out)
        with pytest.raises(CannotConvert, match="'1' did not come out right"):
            convert(model, SyncNorm())
        assert state_of(model) == before

    @pytest.mark.parametrize("change", ["replaced", "held", "hooked in"])
    def test_a_plan_that_is_out_of_date(self, change):
        model = net()
        plan = plan_convert(model, FrozenNorm())
        if change == "replaced":
            model[4] = nn.BatchNorm2d(4)
        elif change == "held":
            fl.freeze(model, "4")
        else:
            model[4].forward = nn.BatchNorm2d(4).forward
        first = model[1]
        with pytest.raises(CannotConvert, match=r"'4': .*\n  fix: plan again"):
            plan.apply()
        assert model[1] is first

    def test_a_plan_is_applied_once(self):
        for model in (net(), nn.BatchNorm1d(3)):
            plan = plan_convert(model, FrozenNorm())
            plan.apply()
            with pytest.raises(CannotConvert, match="plan again"):
                plan.apply()


class TestUndo:
    @by_target
    @pytest.mark.parametrize("training", [True, False])
    def test_gives_back_the_very_objects(self, to, training):
        model = net().train(training)
        model(torch.randn(2, 3, 8, 8))
        before = state_of(model)
        result = convert(model, to)
        assert state_of(model) != before
        assert result.undo() is model
        assert state_of(model) == before
        assert result.undo() is model

    def test_of_a_model_that_is_the_layer(self):
        layer = nn.BatchNorm1d(3)
        result = convert(layer, FrozenNorm())
        assert result.model is not layer
        assert result.undo() is layer
        assert result.model is layer

    def test_of_a_layer_inside_a_wrapper(self):
        wrapper = nn.DataParallel(nn.BatchNorm1d(3))
        layer = wrapper.module
        result = convert(wrapper, FrozenNorm())
        assert result.model is wrapper
        assert type(wrapper.module).__name__ == "FrozenBatchNorm"
        result.undo()
        assert wrapper.module is layer

    def test_takes_what_happened_since_along(self):
        model = net().eval()
        result = convert(model, GroupNorm())
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        weight = model[1].weight.detach().clone()
        result.undo()
        assert torch.equal(model[1].weight, weight)
        assert model[1].training

    def test_takes_another_type_along(self):
        """A dtype change while the statistics were away reaches them too."""
        for to in (GroupNorm(), NoTracking(), FrozenNorm()):
            model = net()
            result = convert(model, to)
            model.double()
            result.undo()
            assert {b.dtype for b in model.buffers()} == {torch.float64, torch.int64}
            model.eval()(torch.randn(1, 3, 8, 8, dtype=torch.float64))

    def test_out_of_order_is_refused(self):
        model = net()
        first = convert(model, SyncNorm())
        second = convert(model, FrozenNorm(), "1")
        with pytest.raises(CannotConvert, match="'1': something else stands in its place"):
            first.undo()
        assert type(model[4]) is nn.SyncBatchNorm
        second.undo()
        first.undo()
        assert type(model[1]) is nn.BatchNorm2d

    def test_of_a_held_layer_is_refused(self):
        model = net()
        result = convert(model, FrozenNorm())
        hold = fl.freeze(model, "1")
        with pytest.raises(CannotConvert, match="held"):
            result.undo()
        hold.thaw()
        result.undo()


class TestCopies:
    @by_target
    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    def test_do_the_same_and_are_apart(self, to, how):
        model = net()
        convert(model, to)
        other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(other.eval()(x), model.eval()(x))
        assert {id(p) for p in other.parameters()}.isdisjoint(id(p) for p in model.parameters())

    @by_target
    def test_compiled_before_and_after(self, to):
        model = net().eval()
        before = torch.compile(model, backend="eager")
        x = torch.randn(2, 3, 8, 8)
        before(x)
        convert(before, to)
        expected = model(x)
        assert torch.equal(before(x), expected)
        assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), expected)


class TestPlan:
    def test_prints_and_writes_what_would_change(self):
        model = net()
        model.add_module("norm", nn.LayerNorm(2))
        before = state_of(model)
        plan = plan_convert(model, GroupNorm())
        assert state_of(model) == before
        text = str(plan)
        assert "Sequential: GroupNorm(groups=None), 2 layers" in text
        assert "needs training: 8 groups of 1 channels" in text
        assert "left as it is: norm: LayerNorm is not known" in text
        assert "<table>" in plan._repr_html_()
        data = json.loads(json.dumps(plan.to_json()))
        assert data["schema_version"]
        assert [row["path"] for row in data["layers"]] == ["1", "4"]
        assert set(data["layers"][0]) == {"path", "from_type", "to_type", "exact", "note"}
        assert list(data["skipped"]) == ["norm"]

    def test_alike_layers_share_a_line(self):
        model = nn.Sequential(*[nn.BatchNorm1d(3) for _ in range(20)])
        assert "[0-19] (x20)" in str(plan_convert(model, SyncNorm()))
