"""Ledgers: the account that a module keeps of the holds on it."""

from __future__ import annotations

import copy
import pickle

from torch import nn

import frostline as fl
from frostline.attach.ledger import KEY, Grip, Ledger, close_ledger, holds_mode, ledger_of, open_ledger


def test_opened_once_and_closed_when_empty():
    layer = nn.Linear(1, 1)
    assert ledger_of(layer) is None
    ledger = open_ledger(layer)
    assert open_ledger(layer) is ledger
    ledger.gradients["weight"] = Grip(True, {"a": "grad"})
    close_ledger(layer)
    assert ledger_of(layer) is ledger
    del ledger.gradients["weight"].tokens["a"]
    close_ledger(layer)
    close_ledger(layer)
    assert KEY not in layer.__dict__


def test_tokens_of_all_grips():
    ledger = Ledger(
        mode=Grip((True, None), {"c": "state"}),
        gradients={"weight": Grip(True, {"a": "grad", "c": "state"})},
        handlers={"h": Grip(None, {"b": "stats"})},
    )
    assert ledger.tokens == {"a": "grad", "b": "stats", "c": "state"}
    assert [grip.tokens for grip in ledger.of_module] == [{"b": "stats"}, {"c": "state"}]
    assert Ledger().tokens == {}


def test_state_dict_and_module_tables_do_not_know_of_it():
    layer = nn.BatchNorm1d(2)
    keys = list(layer.state_dict())
    fl.freeze(layer, "")
    assert list(layer.state_dict()) == keys
    assert KEY not in {*layer._modules, *layer._buffers, *layer._parameters}


def test_copies_keep_their_own_account():
    layer = nn.BatchNorm1d(2)
    hold = fl.freeze(layer, "")
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert ledger_of(other) == ledger_of(layer)
        assert ledger_of(other) is not ledger_of(layer)
        assert hold.token in ledger_of(other).tokens
    hold.thaw()
    assert ledger_of(layer) is None


def test_holds_mode_only_where_the_mode_is_kept():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.LSTM(2, 2))
    fl.freeze(model, "0", level="grad")
    assert not holds_mode(model[0])
    fl.freeze(model, "*")
    assert [holds_mode(m) for m in (model, model[0], model[1])] == [True, True, False]
