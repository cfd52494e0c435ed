"""The files of a new workspace: presets, which are merged into a params.yaml with comments, and the study's questions.

No stage depends on this package.
"""
