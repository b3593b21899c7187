"""Results of a run: written, read back, drawn and printed."""
