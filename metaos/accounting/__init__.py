"""Energy, carbon and cost arithmetic. Pure."""
