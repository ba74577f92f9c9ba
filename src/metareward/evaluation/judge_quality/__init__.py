"""How good a judge is: agreement with human rankings and preference pairs, and its biases."""
