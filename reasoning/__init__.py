"""What runs beside an agent: decide, route, record."""
