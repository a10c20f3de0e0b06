"""What was used is charged, and the bill is compared with the charges."""
