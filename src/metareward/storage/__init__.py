"""What lies on disk: the record store, the run folder, the run log, pair files and digests."""
