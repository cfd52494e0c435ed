"""The command line: it parses options, calls the library `leanresnet`, and prints."""
