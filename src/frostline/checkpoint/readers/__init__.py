"""Readers of checkpoint files, one format a file: names and shapes first, tensors on demand; no code is ever run."""
