"""What is kept: the decision log, its DuckDB views, and the ledger."""
