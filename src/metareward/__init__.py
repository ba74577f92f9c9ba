"""One model acts, judges its answers and judges its judgments; what it finds trains the next model."""
