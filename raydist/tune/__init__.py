"""A study as trials of Ray Tune."""
