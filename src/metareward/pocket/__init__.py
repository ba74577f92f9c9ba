"""The pocket world: instructions whose right answers a program knows, their oracle, and a small model trained on them.

The model has 1.9 M parameters; demos and tests run it on a CPU.
"""
