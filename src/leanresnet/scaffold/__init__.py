"""The files of a new workspace: presets are merged into one params.yaml with a description of each key.

No stage depends on this room.
"""
