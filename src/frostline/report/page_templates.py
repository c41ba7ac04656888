"""How every page is made: escaped, with nothing undefined, nothing invisible, and no script or style but its own."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frostline.extras import require
from frostline.report import figures

# Characters that show nothing and act: they turn the direction of the text around them (Unicode's "Trojan source"),
# end lines, or cannot be in a file at all. What they do to a name should be seen, not suffered.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def render_page(
    template: str,
    *,
    parts: Sequence[str] = (),
    scripts: Sequence[str] = (),
    filters: Mapping[str, Callable[..., str]] | None = None,
    **values: Any,
) -> str:
    r"""Render a page in the design that all pages share.

    Every text is escaped, and characters that act without being seen stand as ``\u202e``. The page's content security
    policy allows its one script and no other. The same values give the same text, byte for byte. Nothing is written.

    Args:
        template: the file of the page.
        parts: styles beside the design, in this order; names without ``.css``.
        scripts: scripts beside the one that sorts tables; names without ``.js``.
        filters: filters beside those of all pages.
        **values: what the template uses.

    Returns:
        The text of one HTML file.

    Raises:
        MissingExtra: jinja2 is not installed.

    Example:
        >>> from frostline.report.table_page import TablePage
        >>> page = TablePage("layers", "Net", ["layer"], [["<b>\u202e"]])
        >>> "<code>&lt;b&gt;\\u202e</code>" in render_page("table.html.j2", page=page)
        True
    """
    templates = _environment()
    templates.filters.update(
        {"size": figures.size, "count": figures.count, "sentence": figures.sentence, **(filters or {})}
    )
    style = "\n".join(_source(templates, f"{name}.css") for name in ("design", *parts))
    script = "\n".join(['"use strict";', *(_source(templates, f"{name}.js") for name in ("tables", *scripts))])
    rendered: str = templates.get_template(template).render(
        {"schema_version": None, **values, "style": style, "script": script, "script_hash": _script_hash(script)}
    )
    return rendered + "\n"


def _environment() -> Any:
    jinja2: Any = require("jinja2", extra="report", purpose="Rendering a report")
    return jinja2.Environment(
        loader=jinja2.PackageLoader("frostline.report", "templates"),
        autoescape=True,
        finalize=_seen,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(templates: Any, name: str) -> str:
    text: str = templates.loader.get_source(templates, name)[0]
    return text.rstrip("\n")


def _seen(value: Any) -> Any:
    """A text with what acts unseen written out; what is no text, and text without it, as it is."""
    if not isinstance(value, str) or _UNSEEN.search(value) is None:
        return value
    # Markup stays markup: the written form has no character that HTML knows.
    return type(value)(_UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value)))


def _script_hash(script: str) -> str:
    """What the content security policy allows to run: this script, and nothing that a name smuggles in."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
