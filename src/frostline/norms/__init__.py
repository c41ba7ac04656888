"""Floor 2: what normalization layers use and update."""

from frostline.norms.layers import StatisticsUse as StatisticsUse
from frostline.norms.layers import statistics_of as statistics_of
