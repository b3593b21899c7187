"""Who talks to whom: graphs, combination matrices, strategies and their theory."""
