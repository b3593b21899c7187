"""The engine: agents, pools of agents, and the driver of their rounds."""
