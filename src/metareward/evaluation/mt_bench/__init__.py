"""MT-Bench: scores of two-turn conversations from 1 to 10."""
