"""The state of a run on disk: the agents' parts, and the manifest that makes them count."""
