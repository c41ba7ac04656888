"""Lightning, and what its trainers say of themselves."""

from __future__ import annotations

import warnings

# Before any other import of Lightning: torchvision, which comes with it, may lack its operators here.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import frostline.integrations.lightning  # noqa: F401
