"""Floor 2: what normalization layers use and update, why eval and train differ, and how that is repaired."""

from frostline.norms.feed import Feed as Feed
from frostline.norms.layers import Layout as Layout
from frostline.norms.layers import StatisticsUse as StatisticsUse
from frostline.norms.layers import has_running_statistics as has_running_statistics
from frostline.norms.layers import register as register
from frostline.norms.layers import statistics_of as statistics_of
from frostline.norms.moments import Moments as Moments
from frostline.norms.moments import population_moments as population_moments
from frostline.norms.observe import tracked_layers as tracked_layers
from frostline.norms.policy import EMA as EMA
from frostline.norms.policy import Blend as Blend
from frostline.norms.policy import Cumulative as Cumulative
from frostline.norms.policy import Domain as Domain
from frostline.norms.policy import OncePerStep as OncePerStep
from frostline.norms.policy import StatsPolicy as StatsPolicy
