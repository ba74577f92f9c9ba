"""Doors to models: `Engine` is the seam, the other modules stand behind it."""
