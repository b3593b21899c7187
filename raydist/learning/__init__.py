"""What learns: data, partitions, models, optimisers."""
