"""The page for people: admission, static files, and the process that renders it (`console`)."""
