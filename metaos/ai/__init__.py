"""Federated learning, models and intrusion detection. Empty until they join."""
