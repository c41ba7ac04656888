"""Floor 1: what is in a model. Reads; only `Snapshot.restore` writes."""

from frostline.state.changes import Change as Change
from frostline.state.changes import StateDiff as StateDiff
from frostline.state.digest import digest as digest
from frostline.state.digest import digest_all as digest_all
from frostline.state.held_rows import held_rows as held_rows
from frostline.state.inventory import Entry as Entry
from frostline.state.inventory import Inventory as Inventory
from frostline.state.inventory import inventory as inventory
from frostline.state.selection import Selection as Selection
from frostline.state.selection import Selector as Selector
from frostline.state.selection import exactly as exactly
from frostline.state.selection import select as select
from frostline.state.snapshot import Record as Record
from frostline.state.snapshot import Snapshot as Snapshot
from frostline.state.snapshot import snapshot as snapshot
