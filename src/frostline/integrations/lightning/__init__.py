"""Callbacks for Lightning: :class:`Freeze` instead of ``BackboneFinetuning``, and :class:`Doctor`."""

from frostline.integrations.lightning.doctor import Doctor as Doctor
from frostline.integrations.lightning.freeze import Freeze as Freeze
