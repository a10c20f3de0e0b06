"""Models that are trained and run on this machine, for nothing: a folder of state, and processes that work on it."""
