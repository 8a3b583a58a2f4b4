"""LeRobot datasets, v3 (being written)."""
