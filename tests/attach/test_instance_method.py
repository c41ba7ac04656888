"""Callables in the ``__dict__`` of one module."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
from torch import nn

from frostline.attach.instance_method import InstanceMethod, install, uninstall
from frostline.errors import HoldReleased


class Named(InstanceMethod[nn.Module]):
    """Answers for its module, with a setting."""

    def __init__(self, module: nn.Module, word: str) -> None:
        super().__init__(module)
        self.word = word

    def _settings(self):
        return (self.word,)

    def __call__(self):
        return self.module, self.word


@pytest.fixture
def layer():
    layer = nn.Linear(1, 1)
    install(layer, "answer", Named(layer, "hello"))
    return layer


def test_acts_on_its_module(layer):
    assert layer.answer() == (layer, "hello")
    assert layer.answer.guards(layer)
    assert not layer.answer.guards(nn.Linear(1, 1))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_acts_on_the_copy_with_the_same_settings(layer, make):
    parent = nn.Sequential(layer, layer)
    other = make(parent)
    assert other[0] is other[1]
    assert other[0].answer() == (other[0], "hello")
    assert layer.answer() == (layer, "hello")


def test_its_reference_is_weak():
    layer = nn.Linear(1, 1)
    install(layer, "answer", method := Named(layer, "hello"))
    watched = weakref.ref(layer)
    gc.disable()
    try:
        del layer
        assert watched() is None
    finally:
        gc.enable()
    with pytest.raises(HoldReleased, match="Named: the module that it belonged to no longer exists"):
        method()


def test_install_and_uninstall(layer):
    first = layer.answer
    assert install(layer, "answer", Named(layer, "second")) is first
    uninstall(layer, "answer", Named, first)
    assert layer.answer is first
    uninstall(layer, "answer", Named, None)
    assert "answer" not in layer.__dict__
    uninstall(layer, "answer", Named, None)


def test_what_someone_else_put_there_since_is_left_alone(layer):
    layer.answer = other = lambda: None
    uninstall(layer, "answer", Named, None)
    assert layer.answer is other
