"""What stands behind one training step: TRL and accelerate."""
