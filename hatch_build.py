"""What a wheel holds beside the sources: its version as a module, and the scripts of `frostline demo`.

Nothing is written into the checkout. An editable install gets neither: its version stands in its metadata, and its
scripts in `examples/`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelContents(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the files to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files; hatchling calls this before it packs.

        Args:
            version: the kind of build, "standard" or "editable".
            build_data: what hatchling is told; `force_include` maps a file here to its place in the wheel.
        """
        if version != "standard":
            return
        # It lives until the build is done, and no longer.
        self._place = tempfile.TemporaryDirectory()
        module = Path(self._place.name) / "_version.py"
        text = f'"""The version that this wheel was built as."""\n\n__version__ = {self.metadata.version!r}\n'
        module.write_text(text, encoding="utf-8")
        wanted = {module: "frostline/_version.py"}
        for script in sorted(Path(self.root, "examples").glob("s[1-9]_*.py")):
            wanted[script] = f"frostline/demos/{script.name}"
        build_data["force_include"].update({str(source): target for source, target in wanted.items()})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was made for the build."""
        del build_data, artifact_path
        if version == "standard":
            self._place.cleanup()
