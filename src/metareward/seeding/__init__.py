"""Seed sets as Self-Rewarding section 3.1 has them: answers that people ranked become IFT and EFT examples."""
