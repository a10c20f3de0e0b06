"""The command `reasoning`."""
