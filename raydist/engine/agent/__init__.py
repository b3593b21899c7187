"""What an agent does by itself: its step and its measurements, without Ray."""
