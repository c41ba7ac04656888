"""What feeds a batch norm, found by tracing and by running: every way in which an output can go elsewhere."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from frostline.errors import CannotConvert
from frostline.norms.convert.watched import watched_sources
from frostline.norms.convert.wiring import traced_sources

X = torch.ones(2, 3, 5, 5)


class Net(nn.Module):
    """A convolution and a batch norm that its subclasses wire."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.eval()

    def forward(self, x):
        return self.bn(self.conv(x))


class UsedTwice(Net):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class Returned(Net):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y), y


class Viewed(Net):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y), y.flatten(1)


class InPlace(Net):
    def forward(self, x):
        y = self.conv(x)
        functional.relu_(y)
        return self.bn(y)


class Between(Net):
    def forward(self, x):
        return self.bn(self.conv(x) * 2)


class CalledTwice(Net):
    def forward(self, x):
        return self.bn(self.conv(self.conv(x)))


class NormTwice(Net):
    def forward(self, x):
        return self.bn(self.bn(self.conv(x)))


class WeightUsed(Net):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv.weight.sum()


class WeightConvolved(Net):
    def forward(self, x):
        return functional.conv2d(x, self.conv.weight) + self.bn(self.conv(x))


class TwoIntoOne(Net):
    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.bn(self.conv(x) + self.other(x))


class NotCalled(Net):
    def forward(self, x):
        return self.conv(x)


class ByKeyword(Net):
    def forward(self, x):
        return self.bn(input=self.conv(x))


UNSAFE = [UsedTwice, Returned, Viewed, InPlace, Between, CalledTwice, NormTwice, WeightUsed, WeightConvolved]
UNSAFE += [TwoIntoOne, NotCalled, ByKeyword]


def traced(model):
    return traced_sources(model, {"bn": model.bn})["bn"]


def watched(model, inputs=X):
    return watched_sources(model, {"bn": model.bn}, inputs)["bn"]


@pytest.mark.parametrize("look", [traced, watched])
class TestBoth:
    def test_a_single_consumer(self, look):
        found = look(Net())
        assert (found.path, found.why_not) == ("conv", "")

    @pytest.mark.parametrize("cls", UNSAFE)
    def test_anything_else_is_told_apart(self, look, cls):
        found = look(cls())
        assert found.path == ""
        assert found.why_not

    def test_says_what_it_is(self, look):
        assert look(UsedTwice()).why_not == "the output of 'conv' (Conv2d) goes elsewhere too"
        assert look(CalledTwice()).why_not == "'conv' (Conv2d), which it follows, is called more than once"
        assert look(NormTwice()).why_not == "it is called more than once"
        assert look(WeightUsed()).why_not == "a forward reads the parameters of 'conv' (Conv2d) or its own"

    def test_the_model_is_as_before(self, look):
        model = Net().train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        look(model)
        assert model.training
        assert not model.conv._forward_hooks
        assert not model.bn._forward_pre_hooks
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class TestTraced:
    def test_a_model_that_depends_on_its_input(self):
        class Branching(Net):
            def forward(self, x):
                return self.bn(self.conv(x)) if x.sum() > 0 else x

        with pytest.raises(CannotConvert, match="cannot be traced"):
            traced(Branching())
        assert watched(Branching()).path == "conv"

    def test_what_has_no_batch_norm_need_not_be_traceable(self):
        class Odd(nn.Module):
            def forward(self, x):
                return x if x.sum() > 0 else -x

        model = Net()
        model.conv, model.odd = nn.Conv2d(3, 3, 1), Odd()
        model.forward = lambda x: model.odd(model.bn(model.conv(model.odd(x))))
        assert traced(model).path == "conv"


class TestWatched:
    def test_shapes(self):
        assert watched(Net()).ndim == 4

    def test_stored_by_a_forward(self):
        class Stored(Net):
            def forward(self, x):
                self.__dict__["features"] = self.conv(x)
                return self.bn(self.features)

        assert watched(Stored()).why_not == "the output of 'conv' (Conv2d) goes elsewhere too"

    def test_used_by_a_scripted_function(self):
        """Below Python, where no function of torch is seen to be called."""

        class Scripted(Net):
            def forward(self, x):
                y = self.conv(x)
                return self.bn(y) + doubled(y)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            doubled = torch.jit.trace(lambda x: x * 2, torch.ones(1))
        assert watched(Scripted()).why_not == "the output of 'conv' (Conv2d) goes elsewhere too"

    def test_inputs_of_other_kinds(self):
        class Two(Net):
            def forward(self, x, scale):
                return self.bn(self.conv(x * scale))

        assert watched(Two(), (X, 2.0)).path == "conv"
        assert watched(Two(), {"x": X, "scale": 2.0}).path == "conv"

    def test_hooks_go_when_the_model_raises(self):
        class Failing(Net):
            def forward(self, x):
                self.conv(x)
                raise KeyError

        model = Failing()
        with pytest.raises(KeyError):
            watched(model)
        assert not model.conv._forward_hooks
        assert not model.conv._forward_pre_hooks

    def test_inputs_that_do_not_reach_it(self):
        assert watched(NotCalled()).why_not == "these inputs do not reach it"
