"""Adversaries of training: threat models, attacks, losses, stationarity."""
