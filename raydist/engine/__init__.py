"""How it runs: agents, pools of agents, and the driver of their rounds."""
