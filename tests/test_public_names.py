"""The public names are a promise: a change here is a change for every user."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import frostline

PUBLIC = [
    "audit",
    "checkpoint",
    "diagnose",
    "doctor",
    "errors",
    "examine",
    "explain",
    "fast",
    "findings",
    "finetune",
    "freeze",
    "freezing",
    "frozen",
    "heads",
    "integrations",
    "inventory",
    "lint",
    "meta",
    "norms",
    "optim",
    "param_groups",
    "plan_load",
    "recalibrate",
    "replace_head",
    "report",
    "snapshot",
    "state",
    "tasks",
    "watch",
]
VERBS = {
    "diagnose",
    "examine",
    "explain",
    "freeze",
    "frozen",
    "inventory",
    "param_groups",
    "plan_load",
    "recalibrate",
    "replace_head",
    "snapshot",
    "watch",
}


# With -S nothing that is installed is seen, and `.pth` files of others import nothing.
ON_PATH = {"PYTHONPATH": str(Path(frostline.__file__).parents[1])}


def test_all_is_pinned_and_sorted() -> None:
    assert frostline.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC
    assert len(VERBS) <= 15


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_resolves(name: str) -> None:
    value = getattr(frostline, name)
    if name in VERBS:
        assert callable(value)
        assert value.__name__ == name
        assert value.__module__.startswith("frostline.")
        assert value.__doc__
    else:
        assert isinstance(value, types.ModuleType)
        assert value.__name__ == f"frostline.{name}"


def test_dir_lists_every_name() -> None:
    assert set(PUBLIC) <= set(dir(frostline))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'frostline' has no attribute 'fry'$"):
        frostline.fry
    assert not hasattr(frostline, "fry")


def test_star_import_brings_exactly_the_public_names() -> None:
    space: dict[str, object] = {}
    exec("from frostline import *", space)
    assert sorted(space.keys() - {"__builtins__"}) == PUBLIC


def test_import_alone_does_not_import_torch() -> None:
    code = (
        "import json, sys, frostline\n"
        "first = sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'numpy', 'xxhash', 'safetensors'})\n"
        "frostline.errors, frostline.findings\n"
        "second = 'torch' in sys.modules\n"
        "frostline.inventory\n"
        "print(json.dumps([first, second, 'torch' in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    # The third is the control: the check can see torch where it is imported.
    assert json.loads(done.stdout) == [[], False, True]


def test_version_is_that_of_the_installed_package() -> None:
    # 0.1.0 at a tag, 0.1.0.dev7+g38e00d3 after it.
    assert re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?(\.dev\d+)?(\+[a-z0-9.]+)?", frostline.__version__)
    try:
        installed = importlib.metadata.version("frostline")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("frostline is not installed here, it is on the path; CI installs it")
    assert frostline.__version__ == installed


def test_the_version_is_looked_up_when_it_is_asked_for() -> None:
    """Metadata of packages takes some 50 ms to read, and only an editable install has to."""
    code = (
        "import sys, frostline\n"
        "first = 'importlib.metadata' in sys.modules\n"
        "print(first, frostline.__version__ is frostline.__version__, '__version__' in dir(frostline))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, env=ON_PATH)
    assert done.stdout.split() == ["False", "True", "True"]


@pytest.mark.skipif(
    Path(frostline.__file__).with_name("_version.py").exists(), reason="a wheel knows its version wherever it lies"
)
def test_a_package_that_is_installed_nowhere_says_so() -> None:
    code = "import frostline; print(frostline.__version__)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, env=ON_PATH)
    assert done.stdout == "0.0.0+unknown\n"
