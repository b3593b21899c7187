"""What a user writes: tables of fields, checked together, and told in one line where wrong."""
