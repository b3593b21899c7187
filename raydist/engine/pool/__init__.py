"""Pools of agents: in this process, as Ray actors, or on the workers of Ray Train."""
