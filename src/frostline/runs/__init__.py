"""Below floor 4: what every run needs, whatever it trains: a folder that survives kills, checkpoints, a device."""
