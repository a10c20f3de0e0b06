"""The decision log outside of the data folder: DuckLake tables, catalog in PostgreSQL (docs/concepts/scale.md)."""
