"""What stands behind the results. A first reader can skip it."""
