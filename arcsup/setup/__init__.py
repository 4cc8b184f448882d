"""The host made ready: doctor looks, setup changes."""
