"""Engines: the `Engine` interface and the model backends behind it.

Nothing here knows recipes or prompts' meaning.
"""
