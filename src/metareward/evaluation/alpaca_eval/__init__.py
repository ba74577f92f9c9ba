"""AlpacaEval 2: win rate and length-controlled win rate."""
