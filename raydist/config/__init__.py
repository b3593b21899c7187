"""The configuration that a user writes: tables of fields, checked together."""
