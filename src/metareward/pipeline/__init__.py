"""The run: a recipe bound to a run folder, its stages and its loop.

Also what reads a run folder: plan, status and rebuild.
"""
