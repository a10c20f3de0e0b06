"""What is behind the API: time, faults, state, machines and running jobs."""
