"""Prompts and seed data: rows of any data set, proposed prompts, IFT and EFT sets.

No model is trained here.
"""
