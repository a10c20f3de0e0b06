"""The decision log: segments land, and Parquet files are listed, compacted, expired and queried."""
