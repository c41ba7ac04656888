"""Floor 3: what moved. Shares no code with what it audits, beyond `state`."""

from frostline.audit.contract import Contract as Contract
from frostline.audit.diff import diff as diff
from frostline.audit.seen import Seen as Seen
from frostline.audit.watch import watch as watch
