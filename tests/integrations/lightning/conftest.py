"""Lightning, and the nets that its tests share."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import pytest

# Before any other import of Lightning: torchvision, which comes with it, may lack its operators here.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import frostline.integrations.lightning  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _silent():
    """What Lightning logs at each start is of no interest here; a test that looks at it sets the level itself."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)
