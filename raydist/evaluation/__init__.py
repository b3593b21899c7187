"""Measuring finished runs: what is asked, what is known, what remains to be done."""
