"""The pocket world: instructions whose right answers a program knows.

With their oracle, and a 1.9 M-parameter model trained on them.
"""
