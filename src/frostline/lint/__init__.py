"""Floor 3: the mistakes of the catalogue in source code, before anything runs; never imports torch."""
