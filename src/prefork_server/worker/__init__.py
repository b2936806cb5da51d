"""The worker process: everything after the fork."""
