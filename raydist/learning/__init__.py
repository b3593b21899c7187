"""Learning without networks or adversaries: data, partitions, models, optimisers."""
