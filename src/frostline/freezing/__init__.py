"""Floor 3: holds, freezing that lasts and can be verified."""

from frostline.freezing.across_ranks import verify_ranks as verify_ranks
from frostline.freezing.data_parallel import rewrap as rewrap
from frostline.freezing.data_parallel import wrap as wrap
from frostline.freezing.explain import Explanation as Explanation
from frostline.freezing.explain import LayerRow as LayerRow
from frostline.freezing.explain import explain as explain
from frostline.freezing.found_holds import holds_on as holds_on
from frostline.freezing.handlers import Handler as Handler
from frostline.freezing.handlers import KeepTensors as KeepTensors
from frostline.freezing.handlers import ObserverOff as ObserverOff
from frostline.freezing.handlers import ObserverPassThrough as ObserverPassThrough
from frostline.freezing.handlers import RecurrentDropoutOff as RecurrentDropoutOff
from frostline.freezing.hold import Hold as Hold
from frostline.freezing.live_wrappers import wrappers_of as wrappers_of
from frostline.freezing.plan import FreezePlan as FreezePlan
from frostline.freezing.plan import plan_freeze as plan_freeze
from frostline.freezing.rank_comparison import RankComparison as RankComparison
from frostline.freezing.rank_comparison import RankEntry as RankEntry
from frostline.freezing.rank_comparison import RankGap as RankGap
from frostline.freezing.safe_verbs import safe_convert_sync_batchnorm as safe_convert_sync_batchnorm
from frostline.freezing.safe_verbs import safe_update_bn as safe_update_bn
from frostline.freezing.verbs import freeze as freeze
from frostline.freezing.verbs import frozen as frozen
