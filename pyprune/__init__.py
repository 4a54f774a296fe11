"""pyprune."""
