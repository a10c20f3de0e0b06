"""The page for people: what the data folder holds, as HTML, and the buttons that change it."""
