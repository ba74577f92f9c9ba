"""The command line: one function per command, no logic of its own."""
