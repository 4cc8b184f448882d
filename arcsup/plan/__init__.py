"""Decisions, from values to values. No input or output."""
