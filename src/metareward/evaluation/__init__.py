"""Measuring models: held-out evaluation, win rates, judge clients, and one package for each benchmark."""
