"""Annotating prompts: answers, judgments and meta-judgments of each, many prompts at once, resumable.

Scores and pairs are computed in `method`.
"""
