"""Settings: what is filled in, what is refused and how, and the presets against their publications."""

from __future__ import annotations

import json
from typing import Any

import pytest

from frostline.errors import MetaError, PolicyError, RunFolderError
from frostline.meta.presets import DIFFERS, PRESETS, preset
from frostline.meta.run_settings import ALGORITHMS, MetaConfig, refuse_other


@pytest.mark.parametrize(
    ("algorithm", "filled"),
    [
        ("maml", (0.4, 1e-3, 2)),
        ("fomaml", (0.4, 1e-3, 1)),
        ("anil", (0.4, 1e-3, 2)),
        ("reptile", (1e-3, 1.0, None)),
        ("proto", (0.4, 1e-3, None)),
    ],
)
def test_what_depends_on_the_algorithm_is_filled_in(algorithm: str, filled: tuple[Any, ...]):
    config = MetaConfig(algorithm=algorithm, iterations=250)
    assert (config.inner_lr, config.lr, config.order) == filled
    assert config.validate_every == 25
    assert MetaConfig(iterations=5).validate_every == 1


def test_what_is_given_is_kept():
    config = MetaConfig(inner_lr=0.1, lr=0.2, order=1, validate_every=7)
    assert (config.inner_lr, config.lr, config.order, config.validate_every) == (0.1, 0.2, 1, 7)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_settings_survive_json(algorithm: str):
    config = MetaConfig(data="somewhere", algorithm=algorithm, policy="batch/support", seed=2**63)
    assert MetaConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"way": 1}, "--way 1: too small\n  fix: 2 or more"),
        ({"shot": 0}, "--shot 0: too small"),
        ({"queries": 0}, "--queries 0: too small"),
        ({"steps": 0}, "--steps 0: too small"),
        ({"iterations": 0}, "--iterations 0: too small"),
        ({"meta_batch": -1}, "--meta-batch -1: too small"),
        ({"eval_tasks": 1}, "--eval-tasks 1: too small"),
        ({"threads": 0}, "--threads 0: too small"),
        ({"seed": -1}, "--seed -1: too small"),
        ({"seed": 2**64}, "--seed 18446744073709551616: too large"),
        ({"lr": 0.0}, "--lr 0.0: a rate is a positive number"),
        ({"inner_lr": float("nan")}, "--inner-lr nan: a rate is a positive number"),
        (
            {"algorithm": "mmal"},
            "--algorithm mmal: there is no such one\n  fix: did you mean 'maml'? one of maml, fomaml",
        ),
        ({"learn_rates": "all"}, "--learn-rates all: there is no such one"),
        ({"on_nonfinite": "ignore"}, "one of stop, skip"),
        ({"network": "resnet"}, "--network resnet: there is no such one"),
        ({"order": 3}, "--order 3: there is no such one"),
        ({"algorithm": "fomaml", "order": 2}, "fomaml is maml in first order"),
        ({"algorithm": "proto", "order": 1}, "--order 1 with --algorithm proto"),
        ({"algorithm": "reptile", "learn_rates": "parameter"}, "--learn-rates parameter with --algorithm reptile"),
        ({"algorithm": "proto", "multi_step": 10}, "--multi-step with --algorithm proto"),
        ({"algorithm": "fomaml", "checkpoint_steps": True}, "--checkpoint-steps with --algorithm fomaml --order 1"),
    ],
    ids=lambda value: " ".join(map(str, value.items())) if isinstance(value, dict) else "",
)
def test_what_is_refused(settings: dict[str, Any], said: str):
    with pytest.raises(MetaError) as caught:
        MetaConfig(**settings)
    assert said in str(caught.value)
    assert "\n  fix: " in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_unknown_policy_names_the_nearest():
    with pytest.raises(PolicyError, match="did you mean 'support'"):
        MetaConfig(policy="suport")


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ([], "holds a list"),
        ({}, "schema version None"),
        ({"schema_version": 99}, "schema version 99, this version reads 1"),
        ({"schema_version": 1, "freeze": [], "epochs": 8}, "it is of no run of few-shot learning"),
        ({"schema_version": 1}, "no number of ways"),
        ({"schema_version": 1, "way": "five"}, "a setting of the wrong type"),
    ],
)
def test_a_configuration_of_something_else_is_refused(stored: Any, said: str):
    with pytest.raises(RunFolderError, match=said):
        MetaConfig.from_json(stored)


def test_other_settings_are_named_with_both_values():
    stored = MetaConfig(way=5, lr=0.01)
    refuse_other(stored, {})
    refuse_other(stored, {"way": 5, "lr": 0.01})
    with pytest.raises(RunFolderError) as caught:
        refuse_other(stored, {"way": 20, "shot": 1, "lr": 0.1})
    assert str(caught.value).splitlines()[1:3] == [
        "  --way 5 there, 20 asked for",
        "  --lr 0.01 there, 0.1 asked for",
    ]


# Copied from the instructions at the top of main.py of cbfinn/maml, and from examples/maml-omniglot.py of higher.
CBFINN = "--metatrain_iterations=60000 --meta_batch_size=32 --update_batch_size=1 --update_lr=0.4 --num_updates=1"
CBFINN_20 = (
    "--metatrain_iterations=60000 --meta_batch_size=16 --update_batch_size=1 --num_classes=20 --update_lr=0.1 "
    "--num_updates=5"
)


@pytest.mark.parametrize(("name", "line"), [("cbfinn-5way-1shot", CBFINN), ("cbfinn-20way-1shot", CBFINN_20)])
def test_presets_of_cbfinn_are_its_command_lines(name: str, line: str):
    published = dict(part.removeprefix("--").split("=") for part in line.split())
    config = MetaConfig(**preset(name))
    assert config.iterations == int(published["metatrain_iterations"])
    assert config.meta_batch == int(published["meta_batch_size"])
    assert config.shot == config.queries == int(published["update_batch_size"])
    assert config.inner_lr == float(published["update_lr"])
    assert config.steps == int(published["num_updates"])
    assert config.way == int(published.get("num_classes", 5))


def test_the_preset_of_higher_is_its_example():
    config = MetaConfig(**preset("higher"))
    assert (config.way, config.shot, config.queries, config.meta_batch, config.steps) == (5, 5, 15, 32, 5)
    assert (config.inner_lr, config.lr, config.network, config.rotations, config.invert) == (
        0.1,
        1e-3,
        "conv3",
        "none",
        False,
    )
    # A hundred epochs of 1,200 // 32 batches each.
    assert config.iterations == 100 * (1200 // 32)


def test_presets_are_known_by_name_and_say_where_they_differ():
    assert PRESETS.keys() == DIFFERS.keys()
    with pytest.raises(MetaError, match="did you mean 'higher'"):
        preset("highr")
