"""What runs inside vLLM's own processes, alone: their Python environment may lack this package."""
