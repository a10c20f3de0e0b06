"""The life of a deployment: begun, watched, given traffic, stopped."""
