"""The guest tools: what is installed inside a guest, gathered in one ISO."""
