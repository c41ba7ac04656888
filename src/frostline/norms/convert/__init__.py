"""Turning normalization layers into others, and back."""

from frostline.norms.convert.conversion import convert as convert
from frostline.norms.convert.conversion import plan_convert as plan_convert
from frostline.norms.convert.fold import fold as fold
from frostline.norms.convert.fold import plan_fold as plan_fold
from frostline.norms.convert.frozen import FrozenBatchNorm as FrozenBatchNorm
from frostline.norms.convert.frozen import FrozenBatchNormAct as FrozenBatchNormAct
from frostline.norms.convert.plan import ConversionPlan as ConversionPlan
from frostline.norms.convert.plan import ConversionResult as ConversionResult
from frostline.norms.convert.plan import ConversionRow as ConversionRow
from frostline.norms.convert.targets import FrozenNorm as FrozenNorm
from frostline.norms.convert.targets import GroupNorm as GroupNorm
from frostline.norms.convert.targets import NoTracking as NoTracking
from frostline.norms.convert.targets import PlainNorm as PlainNorm
from frostline.norms.convert.targets import SyncNorm as SyncNorm
