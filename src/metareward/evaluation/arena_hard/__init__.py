"""Arena-Hard: Bradley-Terry scores against a baseline, with style control."""
