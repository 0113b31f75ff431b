"""fleet: what the hub knows of its devices at this moment, what it tells them, and what of it becomes state."""
