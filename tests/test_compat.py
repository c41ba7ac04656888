"""Torchvision is importable also where its compiled operators do not load.

An import leaves its traces for the life of a process, so each case has a process of its own; they run side by side.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PLAIN = """
import json
try:
    import torchvision
    print(json.dumps(None))
except RuntimeError as error:
    print(json.dumps(str(error)))
"""

OURS = """
import json, sys, warnings
import torch
from frostline import compat
from frostline.errors import TorchvisionWithoutOperators

after_a_failure = len(sys.argv) > 1
if after_a_failure:
    try:
        import torchvision
    except RuntimeError:
        pass

def ours(caught):
    return [[str(w.message), w.filename] for w in caught if issubclass(w.category, TorchvisionWithoutOperators)]

with warnings.catch_warnings(record=True) as first:
    warnings.simplefilter("always")
    models = compat.import_torchvision("models")
with warnings.catch_warnings(record=True) as second:
    warnings.simplefilter("always")
    transforms = compat.import_torchvision("transforms")
    package = compat.import_torchvision()
answer = {"first": ours(first), "second": ours(second), "file": __file__, "declared": len(compat._declared)}
answer["modules"] = [m.__name__ for m in (models, transforms, package)]
answer["plain_import_now"] = __import__("torchvision") is package

if not after_a_failure:
    from PIL import Image
    model = models.resnet18(num_classes=5).eval()
    with torch.no_grad():
        answer["logits"] = list(model(torch.zeros(2, 3, 64, 64)).shape)
    pipeline = transforms.Compose([transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor()])
    image = pipeline(Image.new("RGB", (80, 60), (255, 0, 51)))
    answer["image"] = [list(image.shape), [round(v, 6) for v in image.amax((1, 2)).tolist()]]
    v2 = compat.import_torchvision("transforms.v2")
    answer["v2"] = list(v2.RandomCrop(8)(image).shape)
    import timm
    answer["timm"] = list(timm.create_model("resnet10t", num_classes=3).eval()(torch.zeros(1, 3, 32, 32)).shape)
    try:
        compat.import_torchvision("no_such_room")
    except Exception as error:
        answer["no_such_room"] = type(error).__name__
    try:
        boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2.1], [5, 5, 6, 6]])
        answer["nms"] = package.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    except (RuntimeError, NotImplementedError) as error:
        answer["nms"] = None
print(json.dumps(answer))
"""

MISSING = """
import json, sys
sys.modules["torchvision"] = None
from frostline.compat import import_torchvision, _declared
try:
    import_torchvision("models")
except ImportError as error:
    print(json.dumps([type(error).__name__, str(error), len(_declared)]))
"""

# Stand-ins for other installations, found before the real one: a healthy one, and one that is broken otherwise.
STAND_IN = """
import json, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "torchvision's compiled operators")
sys.path.insert(0, sys.argv[1])
from frostline.compat import import_torchvision, _declared
answers = []
for _ in range(2):
    try:
        answers.append(import_torchvision("models").HELLO)
    except Exception as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps([answers, len(_declared), getattr(sys, "extension_runs", 0)]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("compat")
    for name, body in {
        "healthy": "",
        "broken": "raise RuntimeError('CUDA version mismatch')",
        # Declaring the schemas does not cure this one: it is tried once, then said as it is.
        # What the failed import had got to is run again, not taken as it was left.
        "curable": (
            "import sys, torch\n"
            "from torchvision import extension\n"
            "try:\n    torch.ops.torchvision.nms.default\n"
            "except AttributeError:\n    raise RuntimeError('operator torchvision::nms does not exist')\n"
        ),
        "incurable": "raise RuntimeError('operator torchvision::deform does not exist')",
    }.items():
        package = folder / name / "torchvision"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(body)
        (package / "models.py").write_text("HELLO = 'hello'\n")
        (package / "extension.py").write_text(
            "import sys\nsys.extension_runs = getattr(sys, 'extension_runs', 0) + 1\n"
        )
    cases = {
        "plain": (PLAIN, []),
        "ours": (OURS, []),
        "ours_after_failure": (OURS, ["after"]),
        "missing": (MISSING, []),
        **{name: (STAND_IN, [str(folder / name)]) for name in ("healthy", "broken", "curable", "incurable")},
    }
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, (code, arguments) in cases.items():
            file = folder / f"{name}.py"
            file.write_text(code)
            command = [sys.executable, str(file), *arguments]
            running[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        found = {}
        for name, process in running.items():
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, f"{name}: {err}"
            found[name] = json.loads(out.splitlines()[-1])
        yield found
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def test_the_plain_import_works_or_fails_as_known(answers: dict[str, Any]) -> None:
    assert answers["plain"] in (None, "operator torchvision::nms does not exist")


@pytest.mark.parametrize("case", ["ours", "ours_after_failure"])
def test_ours_works_and_warns_once_exactly_where_the_plain_import_fails(answers: dict[str, Any], case: str) -> None:
    answer = answers[case]
    assert answer["modules"] == ["torchvision.models", "torchvision.transforms", "torchvision"]
    assert answer["second"] == []
    assert answer["plain_import_now"]
    if answers["plain"] is None:
        assert answer["first"] == []
        assert answer["declared"] == 0
    else:
        [[message, file]] = answer["first"]
        assert message.startswith("torchvision's compiled operators do not load beside torch ")
        assert "models and transforms work, torchvision.ops.nms and its siblings do not" in message
        assert "install the torchvision that was built for this torch" in message
        assert Path(file).name == Path(answer["file"]).name
        assert answer["declared"] == 1


def test_models_transforms_and_timm_work_afterwards(answers: dict[str, Any]) -> None:
    answer = answers["ours"]
    assert answer["logits"] == [2, 5]
    assert answer["image"] == [[3, 32, 32], [1.0, 0.0, 0.2]]
    assert answer["v2"] == [3, 8, 8]
    assert answer["timm"] == [1, 3]


def test_the_operators_are_as_available_as_they_were(answers: dict[str, Any]) -> None:
    """A declared schema without a kernel raises; it does not answer with something made up."""
    assert answers["ours"]["nms"] == ([0, 2] if answers["plain"] is None else None)


def test_an_unknown_submodule_is_not_called_a_missing_extra(answers: dict[str, Any]) -> None:
    assert answers["ours"]["no_such_room"] == "ModuleNotFoundError"


def test_without_torchvision_the_message_says_how_to_install_it(answers: dict[str, Any]) -> None:
    assert answers["missing"] == [
        "MissingExtra",
        (
            "Loading images and models needs the package 'torchvision', which is not installed.\n"
            "  fix: python -m pip install 'frostline[train]'"
        ),
        0,
    ]


def test_a_healthy_installation_is_left_alone(answers: dict[str, Any]) -> None:
    assert answers["healthy"] == [["hello"] * 2, 0, 0]


def test_a_partial_import_is_forgotten(answers: dict[str, Any]) -> None:
    assert answers["curable"] == [["hello"] * 2, 1, 2]


def test_another_failure_passes_through_each_time(answers: dict[str, Any]) -> None:
    assert answers["broken"] == [["RuntimeError: CUDA version mismatch"] * 2, 0, 0]
    assert answers["incurable"] == [["RuntimeError: operator torchvision::deform does not exist"] * 2, 1, 0]
