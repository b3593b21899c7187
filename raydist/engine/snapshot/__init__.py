"""The state of a run on disk: parts of agents, and the manifest by which they count."""
