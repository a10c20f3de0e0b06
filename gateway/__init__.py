"""The gateway: HTTP for agents and coding tools."""
