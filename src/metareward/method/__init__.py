"""The papers' method as pure functions: prompts and parsers of judge and meta-judge, scores, Elo, pairs, statistics.

No I/O, no torch.
"""
