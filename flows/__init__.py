"""One Prefect flow a file, one job a person would name."""
