"""Classifiers: replacing and widening them."""
