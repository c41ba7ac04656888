"""Adds the generated pages to the site, and puts the examples into the pages of the scenarios.

MkDocs calls the functions by their names. The pages of rules and rooms live in memory only, so none can be committed
and grow old.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

# MkDocs loads this file by its path: what lies beside it is not yet importable.
sys.path.insert(0, str(Path(__file__).parent))

import reference
import rules

ROOT = Path(__file__).resolve().parents[2]
# A line of a page in whose place the file stands. It is a comment to everything that reads the page as it is.
INCLUDE = re.compile(r"^# include (examples/[\w.]+)$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the sections of the generated pages to the navigation."""
    config.nav = [*(config.nav or []), {"Rules": rules.navigation()}, {"Reference": reference.navigation()}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to the files of the site."""
    from mkdocs.structure.files import File

    for path, text in {**rules.pages(), **reference.pages()}.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Puts the examples in place; one that is missing stops the build."""
    return INCLUDE.sub(lambda found: (ROOT / found[1]).read_text(encoding="utf-8").rstrip(), markdown)
