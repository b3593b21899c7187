"""What the agents train against: threat models, attacks, losses, stationarity."""
