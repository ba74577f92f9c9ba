"""OpenAI-compatible servers as an `Engine`. Servers that metareward starts itself are in `engines.vllm_server`."""
