"""vLLM as an `Engine`: run in process, or as a server that is started and stopped with the run."""
