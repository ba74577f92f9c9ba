"""The HTML report of a run and the terminal tables: facts read from a run folder, charts, templates."""
