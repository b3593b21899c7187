"""The network of agents: graphs, combination matrices, strategies and their theory."""
