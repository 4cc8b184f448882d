"""Figures: ``python -m tests.bench``."""
