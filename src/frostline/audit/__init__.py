"""Floor 3: what moved. Shares no code with what it audits, beyond `state`."""

from frostline.audit.diff import diff as diff
