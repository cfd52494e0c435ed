"""A new workspace: presets merged into one params.yaml, and its keys explained. No stage depends on it."""
