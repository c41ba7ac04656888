"""Arguments of a wrong kind: every public verb says what it expected, what it found and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import FrostlineError, UnsupportedModel
from frostline.state.expected import expect, expect_model
from frostline.state.names import unwrap

NET = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
OPTIMIZER = torch.optim.Adam(NET.parameters())


@pytest.mark.parametrize(
    ("call", "said", "fix"),
    [
        (lambda: fl.freeze("0", NET), "freeze: expected a Module, found '0', a str", "freeze(model, *names)"),  # type: ignore[arg-type]
        (lambda: fl.freeze(OPTIMIZER, "0"), "freeze: expected a Module, found an Adam", "freeze(model, *names)"),  # type: ignore[arg-type]
        (lambda: fl.explain("resnet18"), "explain: expected a Module, found 'resnet18', a str", "explain(model)"),  # type: ignore[arg-type]
        (lambda: fl.snapshot("net"), "snapshot: expected a Module, found 'net', a str", "snapshot(model, *names)"),  # type: ignore[arg-type]
        (lambda: fl.watch("net"), "watch: expected a Module, found 'net', a str", "watch(model, optimizer)"),  # type: ignore[arg-type]
        (lambda: fl.watch(OPTIMIZER), "watch: expected a Module, found an Adam", "watch(model, optimizer)"),  # type: ignore[arg-type]
        (
            lambda: fl.optim.check_groups(OPTIMIZER, NET),  # type: ignore[arg-type]
            "check_groups: expected a Module, found an Adam",
            "check_groups(model, optimizer)",
        ),
        (
            lambda: fl.optim.check_groups(NET, NET),  # type: ignore[arg-type]
            "check_groups: expected something with param_groups, found a Sequential",
            "check_groups(model, optimizer)",
        ),
        (
            lambda: fl.examine(NET),  # type: ignore[arg-type]
            "examine: expected a Seen, found a Sequential",
            "with fl.watch(model, optimizer) as seen: ..., and then fl.examine(seen)",
        ),
        (lambda: unwrap(3), "expected a Module, found 3, an int", "pass the model, a torch.nn.Module"),  # type: ignore[arg-type]
    ],
)
def test_each_verb_says_what_it_takes(call: Callable[[], Any], said: str, fix: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        call()
    first, second = str(caught.value).splitlines()
    assert first.endswith(said)
    assert second.startswith(f"  fix: {fix}")
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("probe", [False, True, "batch"])
def test_a_probe_that_is_no_input_is_not_run(probe: Any) -> None:
    with pytest.raises(FrostlineError, match=r"freeze\(probe=.*\): expected example inputs") as caught:
        fl.freeze(NET, "0", probe=probe)
    assert "\n  fix: " in str(caught.value)
    assert all(parameter.requires_grad for parameter in NET.parameters())


def test_several_kinds_are_all_named() -> None:
    expect(1, (int, str), "verb", "verb(1)")
    with pytest.raises(UnsupportedModel, match=r"verb: expected an int or a str, found 1\.5, a float"):
        expect(1.5, (int, str), "verb", "verb(1)")


def test_a_name_is_told_from_a_model() -> None:
    with pytest.raises(UnsupportedModel, match="where model is the module itself and not its name"):
        expect_model("net", "verb", "verb(model)")
