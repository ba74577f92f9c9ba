"""The pocket world: instructions whose right answers a program knows, and a model small enough for any laptop."""
