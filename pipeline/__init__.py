"""The verbs of the pipeline as plain functions, and their parameters. No Prefect, no terminal."""
