"""Files that hold tensors, and models that start from them."""

from frostline.checkpoint.read import Checkpoint as Checkpoint
from frostline.checkpoint.read import read_tensors as read_tensors
from frostline.checkpoint.start import StartReport as StartReport
from frostline.checkpoint.start import start_from as start_from
