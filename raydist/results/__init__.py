"""What a run leaves behind: written, read back, drawn and printed."""
