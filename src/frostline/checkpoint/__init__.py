"""Checkpoints and models: part of a file into part of a model, planned, all or nothing, and proven by value."""

from frostline.checkpoint.adapters import ClassRows as ClassRows
from frostline.checkpoint.adapters import PositionEmbedding as PositionEmbedding
from frostline.checkpoint.convert import convert as convert
from frostline.checkpoint.inspection import Inspection as Inspection
from frostline.checkpoint.inspection import inspect as inspect
from frostline.checkpoint.load_report import LoadReport as LoadReport
from frostline.checkpoint.opened import Checkpoint as Checkpoint
from frostline.checkpoint.opened import open_checkpoint as open_checkpoint
from frostline.checkpoint.paper import save_plan as save_plan
from frostline.checkpoint.plan import LoadPlan as LoadPlan
from frostline.checkpoint.plan_load import plan_load as plan_load
from frostline.checkpoint.probe import Probe as Probe
from frostline.checkpoint.probe import probe_statistics as probe_statistics
from frostline.checkpoint.rules import Rename as Rename
from frostline.checkpoint.verify import Verification as Verification
from frostline.checkpoint.verify import verify as verify
