"""The machine that arcsup runs on: what is there, and changes to its devices."""
