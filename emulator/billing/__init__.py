"""What everything costs, to the nano-dollar."""
