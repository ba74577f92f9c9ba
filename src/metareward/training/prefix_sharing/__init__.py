"""Prefix sharing: what the rows of a batch have in common is computed once. Loss and trainer are not here."""
