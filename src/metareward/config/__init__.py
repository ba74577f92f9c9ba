"""The recipe: its schema, its YAML file, the packaged presets and the template that `metareward init` writes."""
