"""Where the templates of all pages come from, and how they are rendered: escaped, and with nothing undefined."""

from __future__ import annotations

from typing import Any

from frostline.extras import require


def page_templates() -> Any:
    """The jinja2 environment of the pages.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    jinja2: Any = require("jinja2", extra="report", purpose="Rendering a report")
    return jinja2.Environment(
        loader=jinja2.PackageLoader("frostline.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
