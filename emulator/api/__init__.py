"""The emulated API of Together, one module per resource."""
