"""Checkpoints and models: part of a file into part of a model, planned, all or nothing, and proven by value."""

from frostline.checkpoint.adapters import ClassRows as ClassRows
from frostline.checkpoint.adapters import PositionEmbedding as PositionEmbedding
from frostline.checkpoint.compare import compare as compare
from frostline.checkpoint.comparison import Comparison as Comparison
from frostline.checkpoint.convert import convert as convert
from frostline.checkpoint.delta import load_delta as load_delta
from frostline.checkpoint.delta import save_delta as save_delta
from frostline.checkpoint.delta_info import DeltaInfo as DeltaInfo
from frostline.checkpoint.delta_info import read_delta_info as read_delta_info
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
from frostline.checkpoint.save_distributed import save_distributed as save_distributed
from frostline.checkpoint.tensor_writer import write_tensors as write_tensors
from frostline.checkpoint.verify import Verification as Verification
from frostline.checkpoint.verify import verify as verify
