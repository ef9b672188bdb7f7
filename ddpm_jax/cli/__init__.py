"""The command line: parsers, exit codes, and arguments that several mains share."""
