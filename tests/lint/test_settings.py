"""Settings: what stands in ``pyproject.toml``, where it is looked for, what is refused, what the command line sets."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from frostline.errors import LintSettingsError
from frostline.lint import settings as module
from frostline.lint.globs import Globs
from frostline.lint.settings import DEFAULT_EXCLUDE, Settings, read_settings, read_settings_file

FULL = """
[tool.frostline.lint]
select = ["F", "M2"]
ignore = ["F107"]
extend-select = ["C503"]
exclude = ["gen"]
extend-exclude = ["old/*.py"]
respect-gitignore = false
baseline = "known.json"
output-format = "sarif"
cache-dir = ".cache/lint"
unsafe-fixes = true

[tool.frostline.lint.per-file-ignores]
"tests/*" = ["M201"]
"""


def project(folder: Path, text: str = FULL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pyproject.toml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(folder: Path, text: str) -> str:
    project(folder, text)
    with pytest.raises(LintSettingsError) as caught:
        read_settings(folder)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{folder}/", "")


def test_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert vars(read_settings(tmp_path)) == {
        "select": ("ALL",),
        "ignore": (),
        "extend_select": (),
        "exclude": DEFAULT_EXCLUDE,
        "extend_exclude": (),
        "respect_gitignore": True,
        "per_file_ignores": {},
        "baseline": None,
        "output_format": "full",
        "cache_dir": None,
        "unsafe_fixes": False,
        "root": tmp_path,
        "file": None,
        "origins": {},
    }
    assert Settings().cache_folder == tmp_path / ".frostline_cache"


def test_every_key_is_read_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = project(tmp_path)
    found = read_settings(tmp_path)
    assert found == Settings(
        select=("F", "M2"),
        ignore=("F107",),
        extend_select=("C503",),
        exclude=("gen",),
        extend_exclude=("old/*.py",),
        respect_gitignore=False,
        per_file_ignores={"tests/*": ("M201",)},
        baseline=tmp_path / "known.json",
        output_format="sarif",
        cache_dir=tmp_path / ".cache/lint",
        unsafe_fixes=True,
        root=tmp_path,
        file=file,
    )
    assert found.cache_folder == tmp_path / ".cache/lint"
    assert found.origin("select") == f"{file}, key tool.frostline.lint.select"


def test_each_field_but_three_is_a_key() -> None:
    keys = {key.replace("-", "_") for key in module._READERS}
    assert {each.name for each in dataclasses.fields(Settings)} - keys == {"root", "file", "origins"}


def test_the_nearest_file_with_the_table_counts(tmp_path: Path) -> None:
    project(tmp_path)
    project(tmp_path / "a", '[tool.frostline.lint]\nselect = ["N"]\n')
    project(tmp_path / "a/b", '[project]\nname = "x"\n')
    project(tmp_path / "a/b/c", '[project]\ndependencies = ["frostline"]\n')
    (tmp_path / "a/b/c/train.py").touch()
    assert read_settings(tmp_path / "a/b/c/train.py").select == ("N",)
    assert read_settings(tmp_path / "a/b/c").root == tmp_path / "a"
    assert read_settings(tmp_path).select == ("F", "M2")


def test_the_search_ends_at_the_root_of_the_repository(tmp_path: Path) -> None:
    project(tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    assert read_settings(tmp_path / "a/b").select == ("F", "M2")
    (tmp_path / "a/.git").mkdir()
    assert read_settings(tmp_path / "a/b").select == ("ALL",)
    project(tmp_path / "a", '[tool.frostline.lint]\nselect = ["N"]\n')
    assert read_settings(tmp_path / "a/b").select == ("N",)


def test_an_empty_table_ends_the_search(tmp_path: Path) -> None:
    project(tmp_path)
    file = project(tmp_path / "a", "[tool.frostline.lint]\n")
    assert read_settings(tmp_path / "a") == Settings(root=tmp_path / "a", file=file)


def test_a_relative_start_and_the_name_of_the_file_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, "[tool.frostline.lint]\nselekt = []\n")
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LintSettingsError, match=r"^pyproject\.toml sets tool\.frostline\.lint\.selekt"):
        read_settings(Path("a"))


def test_an_unknown_key_is_told_with_near_ones(tmp_path: Path) -> None:
    assert refusal(tmp_path, "[tool.frostline.lint]\nextend_select = []\n") == (
        "pyproject.toml sets tool.frostline.lint.extend_select, which does not exist\n"
        "  near: extend-select, extend-exclude, select"
    )
    assert refusal(tmp_path, "[tool.frostline.lint]\nzzz = 1\n") == (
        "pyproject.toml sets tool.frostline.lint.zzz, which does not exist\n"
        "  there are: baseline, cache-dir, exclude, extend-exclude, extend-select, ignore, output-format, "
        "per-file-ignores, respect-gitignore, select, unsafe-fixes"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('select = "F"', "key tool.frostline.lint.select: found 'F', expected a list of strings"),
        ("ignore = [1]", "key tool.frostline.lint.ignore: found [1], expected a list of strings"),
        ("respect-gitignore = 1", "key tool.frostline.lint.respect-gitignore: found 1, expected true or false"),
        ("baseline = true", "key tool.frostline.lint.baseline: found True, expected a path"),
        ('cache-dir = ""', "key tool.frostline.lint.cache-dir: found '', expected a path"),
        (
            'output-format = "xml"',
            "key tool.frostline.lint.output-format: found 'xml', expected one of concise, full, json, sarif, github",
        ),
        (
            "output-format = []",
            "key tool.frostline.lint.output-format: found [], expected one of concise, full, json, sarif, github",
        ),
        (
            'per-file-ignores = ["F"]',
            "key tool.frostline.lint.per-file-ignores: found ['F'], expected a table of globs, each with codes",
        ),
        (
            'per-file-ignores = {"a/*" = "F"}',
            "key tool.frostline.lint.per-file-ignores.\"a/*\": found 'F', expected a list of strings",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_told(tmp_path: Path, line: str, message: str) -> None:
    assert refusal(tmp_path, f"[tool.frostline.lint]\n{line}\n") == f"pyproject.toml, {message}"


def test_the_table_itself_may_be_something_else(tmp_path: Path) -> None:
    assert refusal(tmp_path, '[tool.frostline]\nlint = "F"\n') == (
        "pyproject.toml, key tool.frostline.lint: found 'F', expected a table"
    )
    project(tmp_path, 'tool = "frostline"\n')
    assert read_settings(tmp_path).file is None


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    told = refusal(tmp_path, "[tool.frostline.lint]\n\nselect = [F]\n")
    assert told == "pyproject.toml is not valid TOML: line 3: Invalid value"
    told = refusal(tmp_path, '[tool.frostline.lint]\nselect = ["F"\n\n')
    assert told.startswith("pyproject.toml is not valid TOML: line 3: ")


def test_broken_toml_that_has_nothing_to_do_with_it_is_passed_over(tmp_path: Path) -> None:
    project(tmp_path, "[tool.other\n")
    assert read_settings(tmp_path).file is None


def test_other_bytes_than_text_name_the_line_and_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(b"[tool.frostline.lint]\n# \xff\n")
    with pytest.raises(LintSettingsError, match=r"pyproject\.toml is not UTF-8: line 2$"):
        read_settings(tmp_path)
    (tmp_path / "pyproject.toml").write_bytes(b'\xef\xbb\xbf[tool.frostline.lint]\nselect = ["N"]\r\n')
    assert read_settings(tmp_path).select == ("N",)


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    project(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(LintSettingsError, match=r"pyproject\.toml cannot be read: Permission denied$"):
        read_settings(tmp_path)


def test_names_with_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    assert "\x1b" not in refusal(tmp_path, '[tool.frostline.lint]\n"\\u001b[31m" = 1\n')


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    project(tmp_path)
    found = read_settings(tmp_path)
    changed = found.overridden(
        select=["O"], ignore=[], output_format=None, respect_gitignore=True, unsafe_fixes=False, cache_dir=Path("c")
    )
    assert changed == dataclasses.replace(
        found, select=("O",), respect_gitignore=True, unsafe_fixes=False, cache_dir=Path("c")
    )
    assert changed.origin("select") == "option --select"
    assert changed.origin("ignore") == found.origin("ignore")
    assert Settings().origin("extend_select") == "the default of extend-select"
    assert found.select == ("F", "M2")


def test_what_the_command_line_cannot_set() -> None:
    with pytest.raises(LintSettingsError, match=r"^option --output-format: found 'xml', expected one of concise, full"):
        Settings().overridden(output_format="xml")
    with pytest.raises(TypeError, match="selects"):
        Settings().overridden(selects=["F"])


def test_globs_of_the_command_line_count_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path)
    here = tmp_path / "a[b]"
    here.mkdir()
    monkeypatch.chdir(here)
    found = read_settings(here).overridden(extend_exclude=["gen/*.py", "*_pb2.py", "build/", "/abs/x.py", "./y/z.py"])
    globs = Globs(found.extend_exclude, found.root)
    assert globs.match(str(here / "gen/x.py"))
    assert globs.match(str(here / "y/z.py"))
    assert not globs.match(str(tmp_path / "gen/x.py"))
    assert globs.match(str(tmp_path / "x_pb2.py"))
    assert globs.match(str(tmp_path / "build"))
    assert globs.match("/abs/x.py")


def test_a_project_without_settings_costs_no_reading_of_toml(tmp_path: Path) -> None:
    project(tmp_path, '[project]\nname = "x"\n')
    script = (
        "import sys; from pathlib import Path; from frostline.lint.settings import read_settings\n"
        "read_settings(Path(sys.argv[1])); print(sorted({'tomllib', 'tomli', 'torch', 'pathspec'} & set(sys.modules)))"
    )
    run = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_file_of_any_name_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub/lint.toml").write_text('[tool.frostline.lint]\nselect = ["M"]\nbaseline = "known.json"\n')
    found = read_settings_file(Path("sub/lint.toml"))
    assert found is not None
    assert (found.select, found.root, found.file) == (("M",), tmp_path / "sub", tmp_path / "sub/lint.toml")
    assert found.baseline == tmp_path / "sub/known.json"
    Path("other.toml").write_text("[tool.other]\nfrostline = 1\n")
    assert read_settings_file(Path("other.toml")) is None
    assert read_settings_file(Path("nowhere.toml")) is None
    Path("wrong.toml").write_text("[tool.frostline.lint]\nselects = 1\n")
    with pytest.raises(LintSettingsError, match=r"wrong\.toml sets tool\.frostline\.lint\.selects"):
        read_settings_file(Path("wrong.toml"))
