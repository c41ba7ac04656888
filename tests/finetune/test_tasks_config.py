"""Settings of a run with several tasks: what is refused, and what is written."""

from __future__ import annotations

from typing import Any

import pytest

from frostline.errors import RunFolderError
from frostline.finetune.config import ConfigError, FinetuneConfig
from frostline.finetune.tasks_config import TasksConfig, tasks_from

SETTINGS: dict[str, Any] = {"data": "photos", "model": "timm/resnet18"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["kind.csv"], "--task kind.csv: a task has a name and a file\n  fix: --task kind=kind.csv"),
        (["=more/kind.csv"], "fix: --task kind=more/kind.csv"),
        (["kind="], "fix: --task kind=LABELS.csv"),
        (["kind"], "fix: --task kind=LABELS.csv"),
        (["a=1.csv", "a=2.csv"], "--task a=2.csv: there is a task 'a' already, 1.csv"),
    ],
)
def test_options_that_name_no_task_are_refused(options: list[str], said: str):
    with pytest.raises(ConfigError) as caught:
        tasks_from(options)
    assert said in str(caught.value)


def test_a_file_may_have_an_equals_sign():
    assert tasks_from([" kind = a=b.csv"]) == {"kind": "a=b.csv"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": "full"}, "--strategy with --task: "),
        ({"freeze": ("layer1",)}, "--freeze with --task: all of the trunk is held"),
        ({"lr_schedule": "cosine"}, "--lr-schedule with --task: "),
        ({"naive": True}, "--naive with --task: "),
    ],
)
def test_what_has_no_effect_is_refused(settings: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        TasksConfig({"kind": "kind.csv"}, FinetuneConfig(**SETTINGS, **settings))


@pytest.mark.parametrize("name", ["a.b", "keys", "training", ""])
def test_names_that_make_no_path_are_refused(name: str):
    with pytest.raises(ConfigError, match="makes no path"):
        TasksConfig({name: "kind.csv"}, FinetuneConfig(**SETTINGS))


def test_no_task_and_no_patience_are_refused():
    with pytest.raises(ConfigError, match="there is no task"):
        TasksConfig({}, FinetuneConfig(**SETTINGS))
    with pytest.raises(ConfigError, match="--patience 0: too small"):
        TasksConfig({"kind": "kind.csv"}, FinetuneConfig(**SETTINGS), patience=0)


def test_what_is_written_cannot_be_taken_for_a_run_with_one_task():
    written = TasksConfig({"kind": "kind.csv"}, FinetuneConfig(**SETTINGS, naive=False), patience=2).to_json()
    assert (written["tasks"], written["patience"], written["model"]) == ({"kind": "kind.csv"}, 2, "timm/resnet18")
    with pytest.raises(RunFolderError, match="schema version 'tasks-1'"):
        FinetuneConfig.from_json(written)
