"""OpenAI-compatible servers as an `Engine`: one server's HTTP client, the pool of servers, the engine with its cache."""
