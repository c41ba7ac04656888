"""Functions and classes of other files, in all the ways in which people import them.

One mistake is found through each: a model is thawed by a helper after it was wrapped (D801).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from frostline.lint import engine
from frostline.lint.diagnostic import Failure
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.project import Project
from frostline.lint.source import Source, read_source

THAW = """
def thaw(module):
    for p in module.parameters():
        p.requires_grad = True
"""
FREEZE = """
def thaw(module):
    print(module)
"""
MAIN = """
from torch.nn.parallel import DistributedDataParallel as DDP
{imports}
def run(net, loader):
    net.body.requires_grad_(False)
    model = DDP(net)
    for epoch in range(9):
        if epoch > 3:
            {call}
        for x in loader:
            model(x).sum().backward()
"""
BODY = "(model.module.body)"


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``found(files, name, code="D801")``: ``line origin`` of what is found in one file, linted with the others."""
    monkeypatch.chdir(tmp_path)

    def lint(files: dict[str, str], name: str, code: str = "D801") -> list[str]:
        for path, text in files.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(textwrap.dedent(text))
        engine.forget_packages()

        def read(path: str) -> Source:
            source = read_source(Path(path), path)
            assert not isinstance(source, Failure)
            return source

        def opened(path: str) -> ModuleWalk | None:
            return engine.open_walk(read(path), project)

        project = Project(files, opened, lambda path: read(path).text)
        diagnostics, failure = engine.lint(read(name), project)
        assert failure is None
        told = [each.finding for each in diagnostics if each.finding.code == code]
        return [f"{each.line} {each.evidence.splitlines()[-1].partition(' sets')[0]}" for each in told]

    return lint


def main(imports: str, call: str = "thaw" + BODY) -> str:
    return MAIN.format(imports=imports, call=call)


WAYS = {
    "beside each other": ({"helpers.py": THAW}, "from helpers import thaw", "thaw", "helpers.py"),
    "under another name": ({"helpers.py": THAW}, "from helpers import thaw as open_up", "open_up", "helpers.py"),
    "a module": ({"helpers.py": THAW}, "import helpers", "helpers.thaw", "helpers.py"),
    "a module under another name": ({"helpers.py": THAW}, "import helpers as h", "h.thaw", "helpers.py"),
    "a star": ({"helpers.py": THAW}, "from helpers import *", "thaw", "helpers.py"),
    "in a try": (
        {"helpers.py": THAW},
        "try:\n    from helpers import thaw\nexcept ImportError:\n    thaw = None",
        "thaw",
        "helpers.py",
    ),
    "a folder without __init__": ({"lib/helpers.py": THAW}, "from lib.helpers import thaw", "thaw", "lib/helpers.py"),
    "a module of a folder": ({"lib/helpers.py": THAW}, "from lib import helpers", "helpers.thaw", "lib/helpers.py"),
    "a dotted module": ({"lib/helpers.py": THAW}, "import lib.helpers", "lib.helpers.thaw", "lib/helpers.py"),
    "a dotted module under another name": (
        {"lib/helpers.py": THAW},
        "import lib.helpers as h",
        "h.thaw",
        "lib/helpers.py",
    ),
    "a package": (
        {"pkg/__init__.py": "", "pkg/helpers.py": THAW},
        "from pkg.helpers import thaw",
        "thaw",
        "pkg/helpers.py",
    ),
    "in __init__ itself": ({"pkg/__init__.py": THAW}, "from pkg import thaw", "thaw", "pkg/__init__.py"),
    "through __init__": (
        {"pkg/__init__.py": "from .helpers import thaw\n", "pkg/helpers.py": THAW},
        "from pkg import thaw",
        "thaw",
        "pkg/helpers.py",
    ),
    "through __init__, by its full name": (
        {"pkg/__init__.py": "from pkg.helpers import thaw as melt\n", "pkg/helpers.py": THAW},
        "import pkg",
        "pkg.melt",
        "pkg/helpers.py",
    ),
    "through a star in __init__": (
        {"pkg/__init__.py": "from .helpers import *\n", "pkg/helpers.py": THAW},
        "from pkg import thaw",
        "thaw",
        "pkg/helpers.py",
    ),
    "a star of a star": (
        {"pkg/__init__.py": "from .helpers import *\n", "pkg/helpers.py": THAW},
        "from pkg import *",
        "thaw",
        "pkg/helpers.py",
    ),
    "a module through __init__": (
        {"pkg/__init__.py": "from . import helpers\n", "pkg/helpers.py": THAW},
        "import pkg",
        "pkg.helpers.thaw",
        "pkg/helpers.py",
    ),
    "through two __init__": (
        {
            "pkg/__init__.py": "from .tools import thaw\n",
            "pkg/tools/__init__.py": "from .melting import thaw\n",
            "pkg/tools/melting.py": THAW,
        },
        "from pkg import thaw",
        "thaw",
        "pkg/tools/melting.py",
    ),
    "a src layout": (
        {"src/pkg/__init__.py": "", "src/pkg/helpers.py": THAW},
        "from pkg.helpers import thaw",
        "thaw",
        "src/pkg/helpers.py",
    ),
    "a src layout, through __init__": (
        {"src/pkg/__init__.py": "from .helpers import thaw\n", "src/pkg/helpers.py": THAW},
        "import pkg as p",
        "p.thaw",
        "src/pkg/helpers.py",
    ),
    "an alias in the other file": (
        {"helpers.py": THAW + "\nopen_up = thaw\n"},
        "from helpers import open_up",
        "open_up",
        "helpers.py",
    ),
    "a static method": (
        {"helpers.py": "class Tools:\n    @staticmethod" + textwrap.indent(THAW, "    ")},
        "from helpers import Tools",
        "Tools.thaw",
        "helpers.py",
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_helper_is_found(name, found):
    files, imports, call, origin = WAYS[name]
    main_file = main(imports, call + BODY)
    line = next(i for i, text in enumerate(main_file.splitlines(), 1) if text.endswith(call + BODY))
    written = (
        files[origin]
        .splitlines()
        .index(next(text for text in files[origin].splitlines() if "requires_grad = True" in text))
    )
    assert found({**files, "train.py": main_file}, "train.py") == [f"{line} {origin}:{written + 1}"]


@pytest.mark.parametrize("name", WAYS)
def test_a_helper_that_thaws_nothing_is_silent(name, found):
    files, imports, call, _ = WAYS[name]
    files = {path: text.replace("p.requires_grad = True", "print(p)") for path, text in files.items()}
    assert found({**files, "train.py": main(imports, call + BODY)}, "train.py") == []


INSIDE = {
    "a sibling": ("from .helpers import thaw", "thaw"),
    "a module": ("from . import helpers", "helpers.thaw"),
    "the parent's": ("from ..pkg.helpers import thaw", "thaw"),
    "its full name": ("from outer.pkg.helpers import thaw", "thaw"),
    "another branch": ("from ..tools.melting import thaw", "thaw"),
    "what the package has": ("from . import thaw", "thaw"),
    "what the package above has": ("from .. import thaw", "thaw"),
}


@pytest.mark.parametrize("name", INSIDE)
def test_relative_imports(name, found):
    imports, call = INSIDE[name]
    files = {
        "outer/__init__.py": "from .pkg.helpers import thaw\n",
        "outer/pkg/__init__.py": "from .helpers import thaw\n",
        "outer/pkg/helpers.py": THAW,
        "outer/tools/__init__.py": "",
        "outer/tools/melting.py": THAW,
        "outer/pkg/train.py": main(imports, call + BODY),
    }
    origin = "outer/tools/melting.py" if "tools" in imports else "outer/pkg/helpers.py"
    assert found(files, "outer/pkg/train.py") == [f"9 {origin}:4"]


def test_a_helper_of_a_helper(found):
    files = {
        "helpers.py": "from deeper import all_parts\ndef thaw(module):\n    all_parts(module, True)\n",
        "deeper.py": "def all_parts(m, flag):\n    for p in m.parameters():\n        p.requires_grad = flag\n",
        "train.py": main("from helpers import thaw"),
    }
    assert found(files, "train.py") == ["9 deeper.py:3"]
    files["helpers.py"] = files["helpers.py"].replace("print", "").replace("True", "flag=None")
    assert found(files, "train.py") == ["9 deeper.py:3"]


def test_files_that_import_each_other(found):
    files = {
        "a.py": "from b import step\ndef thaw(module):\n    step(module)\n",
        "b.py": "import a\ndef step(module):\n    module.requires_grad_(True)\ndef other(m):\n    a.thaw(m)\n",
        "train.py": main("from b import other", "other" + BODY),
    }
    assert found(files, "train.py") == ["9 b.py:3"]
    files["b.py"] = "import a\ndef other(m):\n    a.thaw(m)\ndef step(module):\n    other(module)\n"
    assert found(files, "train.py") == []


def test_a_name_that_two_files_have_is_that_of_the_nearest(found):
    files = {
        "one/helpers.py": THAW,
        "one/train.py": main("from helpers import thaw"),
        "two/helpers.py": FREEZE,
        "two/train.py": main("from helpers import thaw"),
    }
    assert found(files, "one/train.py") == ["9 one/helpers.py:4"]
    assert found(files, "two/train.py") == []


def test_a_file_that_is_called_as_the_one_it_imports_from(found):
    files = {"lib/train.py": THAW, "train.py": main("from lib.train import thaw")}
    assert found(files, "train.py") == ["9 lib/train.py:4"]


def test_what_a_file_defines_itself_comes_before_a_star(found):
    files = {"helpers.py": THAW, "train.py": main("from helpers import *\n" + FREEZE.strip() + "\n")}
    assert found(files, "train.py") == []


def test_the_last_of_two_stars_counts(found):
    files = {"one.py": THAW, "two.py": FREEZE, "train.py": main("from one import *\nfrom two import *")}
    assert found(files, "train.py") == []
    files["train.py"] = main("from two import *\nfrom one import *")
    assert found(files, "train.py") == ["10 one.py:4"]


CLASSES = """
from torch import nn
from torch.nn.parallel import DistributedDataParallel
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.body.requires_grad_(False)
    def thaw(self):
        self.body.requires_grad_(True)
class Steps:
    def __init__(self, model):
        self.model = model
    def step(self, x):
        self.model(x).sum().backward()
class Trainer(Steps):
    def __init__(self, net):
        self.model = DistributedDataParallel(net)
"""


def test_a_class_of_another_file_with_its_attributes_and_methods(found):
    text = """
        from torch.nn.parallel import DistributedDataParallel
        from models import Net, Steps
        def run(loader):
            net = Net()
            model = DistributedDataParallel(net)
            steps = Steps(model)
            for epoch in range(9):
                if epoch == 5:
                    net.thaw()
                for x in loader:
                    steps.step(x)
        """
    assert found({"models.py": CLASSES, "train.py": text}, "train.py") == ["10 models.py:10"]
    silent = text.replace("net.thaw()", "net.train()")
    assert found({"models.py": CLASSES, "train.py": silent}, "train.py") == []


def test_a_base_class_of_another_file(found):
    text = """
        import models
        class Mine(models.Trainer):
            def run(self, loader):
                for epoch in range(9):
                    if epoch == 5:
                        self.model.module.body.requires_grad_(True)
                    for x in loader:
                        self.step(x)
        def main(loader):
            net = models.Net()
            Mine(net).run(loader)
        """
    assert found({"models.py": CLASSES, "train.py": text}, "train.py") == ["7 line 7"]


def test_what_a_function_of_another_file_returns(found):
    files = {
        "build.py": "from torch.nn.parallel import DistributedDataParallel\n"
        "def build(net):\n    net.body.requires_grad_(False)\n    return DistributedDataParallel(net)\n",
        "train.py": """
            from build import build
            def run(net, loader):
                model = build(net)
                for epoch in range(9):
                    if epoch == 5:
                        model.module.body.requires_grad_(True)
                    for x in loader:
                        model(x).sum().backward()
            """,
    }
    assert found(files, "train.py") == ["7 line 7"]


def test_a_result_that_is_not_used_in_another_file_is_found_there(found):
    files = {
        "loading.py": "import torch\ndef load(net, path):\n    net.load_state_dict(torch.load(path), strict=False)\n",
        "train.py": "from loading import load\nload(net, 'x.pt')\n",
    }
    assert [each.partition(" ")[0] for each in found(files, "loading.py", "C501")] == ["3"]
    assert found(files, "train.py", "C501") == []


def test_a_file_that_is_no_python_is_passed_over(found):
    files = {"helpers.py": "def thaw(module:\n", "train.py": main("from helpers import thaw")}
    assert found(files, "train.py") == []
