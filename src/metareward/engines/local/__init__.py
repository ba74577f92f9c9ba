"""The local engine: runs a Hugging Face model with PyTorch, in worker processes; no servers, no other engine's code."""
