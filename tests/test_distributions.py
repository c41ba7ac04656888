"""What would be published: built here from a copy of the checkout, and looked into."""

from __future__ import annotations

import email
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KEPT_OUT = {".git", ".venv", "venv", "build", "dist", "site", "runs"}

pytestmark = pytest.mark.slow


def copy_of_checkout(target: Path) -> Path:
    """What git would have of it, with what is not committed yet; without git, as an sdist is."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        names = [Path(name) for name in done.stdout.split("\0") if name]
    else:
        names = [path.relative_to(ROOT) for path in ROOT.rglob("*") if "__pycache__" not in path.parts]
    for name in names:
        if (ROOT / name).is_file() and name.parts[0] not in KEPT_OUT:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    return target


def build(source: Path, into: Path, *options: str) -> Path:
    # No isolation: what builds is installed already, with the tests' other tools.
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(into), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = into.iterdir()
    return made


def git(place: Path, *arguments: str) -> None:
    identity = {f"GIT_{who}_{what}": "tests" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(
        ["git", *arguments], cwd=place, check=True, capture_output=True, env={**os.environ, **identity, **quiet}
    )


def version_of(source: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "version"], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as it is, with one commit that has the tag v0.1.0."""
    place = copy_of_checkout(tmp_path_factory.mktemp("release") / "frostline")
    git(place, "init", "-q")
    git(place, "add", "-A")
    git(place, "commit", "-q", "-m", "as it is")
    git(place, "tag", "v0.1.0")
    return place


@pytest.fixture(scope="module")
def sdist(tagged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tagged, tmp_path_factory.mktemp("sdist"), "--sdist")


@pytest.fixture(scope="module")
def wheel(tagged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tagged, tmp_path_factory.mktemp("wheel"), "--wheel")


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as packed:
        (name,) = [name for name in packed.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(packed.read(name))


def test_the_wheel_holds_all_that_the_package_uses_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        assert packed.read("frostline/_version.py").decode().endswith("\n__version__ = '0.1.0'\n")
        scripts = {name: packed.read(name) for name in names if name.startswith("frostline/demos/")}
    source = ROOT / "src"
    files = [path for path in (source / "frostline").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    expected = {path.relative_to(source).as_posix() for path in files}
    assert {f"s{number}" for number in range(1, 10)} == {Path(name).name.partition("_")[0] for name in scripts}
    for name, text in scripts.items():
        assert text == (ROOT / "examples" / Path(name).name).read_bytes()
    assert {name for name in names if ".dist-info/" not in name} == expected | set(scripts) | {"frostline/_version.py"}
    assert "frostline/py.typed" in names
    assert {Path(name).suffix for name in names if name.startswith("frostline/report/templates/")} >= {".css", ".js"}
    assert "frostline-0.1.0.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if "test" in Path(name).name and not (source / name).is_file()]


def test_the_wheel_alone_knows_its_version_and_brings_its_demos(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()

    def program(*arguments: str) -> str:
        command = [sys.executable, "-m", "frostline", *arguments]
        done = subprocess.run(
            command,
            cwd=tmp_path / "elsewhere",
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert program("--version") == "frostline 0.1.0\n"
    assert [line[:2] for line in program("demo").splitlines()[:-1] if line[:1] == "S"] == [
        f"S{n}" for n in range(1, 10)
    ]
    assert program("demo", "S4", "--show") == (tmp_path / "site/frostline/demos/s4_three_ways.py").read_text()


def test_the_sdist_holds_the_tests_and_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
        packed.extractall(tmp_path, filter="data")
    assert {"README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md", "CITATION.cff", "constraints.txt"} <= names
    assert {"tests/conftest.py", "examples/s1_two_heads.py", "benchmarks/measure.py", "hatch_build.py"} <= names
    again = build(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "again", "--wheel")
    assert again.name == wheel.name
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(again) as theirs:
        differing = [
            name
            for name in {*ours.namelist(), *theirs.namelist()}
            if hashlib.sha256(ours.read(name)).digest() != hashlib.sha256(theirs.read(name)).digest()
        ]
    assert differing == []


def test_the_metadata_is_complete_and_names_no_place_that_does_not_exist(wheel: Path) -> None:
    metadata = metadata_of(wheel)
    assert (metadata["Name"], metadata["Version"]) == ("frostline", "0.1.0")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == "the Frostline developers"
    assert metadata["Author-email"] is None
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    classifiers = metadata.get_all("Classifier", [])
    assert {"Operating System :: OS Independent", "Programming Language :: Python :: 3.10"} <= set(classifiers)
    assert metadata.get_all("Project-URL", []) == []
    assert set(metadata.get_all("Provides-Extra", [])) >= {"all", "cli", "train", "report", "docs", "dev"}


def test_the_version_is_the_tags_or_says_that_there_is_none(tagged: Path, tmp_path: Path) -> None:
    assert version_of(tagged) == "0.1.0"
    subprocess.run(["git", "clone", "-q", str(tagged), "later"], cwd=tmp_path, check=True)
    later = tmp_path / "later"
    git(later, "commit", "-q", "--allow-empty", "-m", "one more")
    assert version_of(later).startswith("0.1.1.dev1+g")
    git(later, "tag", "-d", "v0.1.0")
    assert version_of(later).startswith("0.1.0.dev2+g")
    git(later, "tag", "v0.2.0rc1")
    assert version_of(later) == "0.2.0rc1"
    git(later, "tag", "-d", "v0.2.0rc1")
    git(later, "tag", "nightly-3")  # no version
    assert version_of(later).startswith("0.1.0.dev2+g")


def test_an_archive_of_a_commit_knows_its_version_and_a_copied_folder_says_that_it_does_not(
    tagged: Path, tmp_path: Path
) -> None:
    git(tagged, "archive", "-o", str(tmp_path / "archive.tar"), "v0.1.0")
    with tarfile.open(tmp_path / "archive.tar") as packed:
        packed.extractall(tmp_path / "archive", filter="data")
    assert version_of(tmp_path / "archive") == "0.1.0"
    assert version_of(copy_of_checkout(tmp_path / "copied")) == "0.1.0.dev0"
