"""Sessions and exports of other systems, as decision records."""
