"""Whether a file does meta-learning."""

from __future__ import annotations

import pytest

from frostline.lint.file_view import FileView
from frostline.lint.meta_learning import meta_learning_in
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.parsing import parse
from frostline.lint.project import Project
from frostline.lint.source import Source, source_from_bytes


def shown(text: str) -> str:
    source = source_from_bytes(text.encode(), "train.py")
    assert isinstance(source, Source)
    return meta_learning_in(FileView(ModuleWalk(source, parse(source), "train", Project())))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("import higher\n", "higher is imported"),
        ("from learn2learn.algorithms import MAML\n", "learn2learn is imported"),
        ("def maml(support_x, query_x): ...\n", "maml and support and query sets stand here"),
        ("meta_lr = 1\ninner_steps = 5\n", "meta_lr and inner_steps stand here"),
        ("fast_weights = torch.autograd.grad(loss, p, create_graph=True)\n", "fast_weights stands here"),
    ],
)
def test_one_hint_of_a_library_or_two_of_names(text, hint):
    assert shown(text) == hint


@pytest.mark.parametrize(
    "text",
    [
        "query, key, value = x.chunk(3)\n",
        "support_x, query_x = batch\n",
        "meta_learner = 3\n",
        "adapted = model(x)\n",
        "# a higher accuracy\nimport higherorder\n",
        "metadata = {'model': 1}\n",
    ],
)
def test_one_name_is_not_enough(text):
    assert shown(text) == ""
