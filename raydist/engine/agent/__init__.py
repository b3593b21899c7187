"""One agent alone, without Ray: its local step and its measurements."""
