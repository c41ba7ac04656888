"""Lightning, and the nets that its tests share."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

# Before any other import of Lightning: torchvision, which comes with it, may lack its operators here.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import frostline.integrations.lightning  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
