"""The papers' method as pure functions: rubric prompts and parsers, scores, Elo ratings, preference pairs, statistics.

No engines, no torch, no files but the prompt texts.
"""
