"""What stands beside the sources: how to cite, what is trusted, which versions are tested together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
# The properties that the format 1.2.0 has for a file and for an author that is no person.
CFF = [
    "abstract",
    "authors",
    "cff-version",
    "commit",
    "contact",
    "date-released",
    "doi",
    "identifiers",
    "keywords",
    "license",
    "license-url",
    "message",
    "preferred-citation",
    "references",
    "repository",
    "repository-artifact",
    "repository-code",
    "title",
    "type",
    "url",
    "version",
]
CFF_ENTITY = [
    "address",
    "alias",
    "city",
    "country",
    "date-end",
    "date-start",
    "email",
    "fax",
    "location",
    "name",
    "orcid",
    "post-code",
    "region",
    "tel",
    "website",
]


def normal(requirement: str) -> str:
    """The name of a requirement, as registries compare names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement.strip())[0]).lower()


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [normal(line) for line in lines if line.strip() and not line.startswith("#")]


def test_the_citation_has_what_the_format_demands_and_nothing_that_it_does_not_know() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys() <= set(CFF)
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    project = settings()["project"]
    assert cited["license"] == project["license"]
    for author in cited["authors"]:
        assert {"name"} <= author.keys() <= set(CFF_ENTITY)
    assert [author["name"] for author in cited["authors"]] == [each["name"] for each in project["authors"]]


def test_all_that_the_note_on_security_names_is_there() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|benchmarks|\.ci)/[\w./-]*)`", text)
    assert len(named) >= 6
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert "://" not in text, "there is no address to report to but the repository's own"


def test_nothing_is_pinned_twice() -> None:
    assert len(set(pins())) == len(pins())


def test_all_that_the_tests_install_is_pinned() -> None:
    project = settings()["project"]
    wanted = [*project["dependencies"]]
    for extra in ("cli", "train", "report", "docs", "dev"):
        wanted += [each for each in project["optional-dependencies"][extra] if normal(each) != "frostline"]
    assert {normal(each) for each in wanted} - set(pins()) == set()


def test_the_tools_that_build_are_among_those_of_development() -> None:
    """Then the tests build without fetching anything."""
    read = settings()
    dev = {normal(each) for each in read["project"]["optional-dependencies"]["dev"]}
    assert {normal(each) for each in read["build-system"]["requires"]} <= dev


def test_a_copied_folder_does_not_pass_for_a_release() -> None:
    """Where git knows nothing, the version is the development of what comes after the newest release."""
    fallback = Version(settings()["tool"]["hatch"]["version"]["fallback-version"])
    assert fallback.is_devrelease
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = [Version(found) for found in re.findall(r"^## \[?v?(\d+\.\d+\.\d+)", changelog, re.MULTILINE)]
    assert all(release < fallback for release in released)
