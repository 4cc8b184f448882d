"""Random faults under a real daemon with real QEMUs; see ``chaos.py``."""
