"""The command line: parse, compose, write. What is computed is computed in `leanresnet`."""
