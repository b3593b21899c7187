"""raydist: distributed adversarial training on graphs of Ray actors."""
