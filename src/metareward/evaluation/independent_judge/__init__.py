"""A judge beside the model: it grades every model's held-out answers, and the model's own judgments are held to it."""
