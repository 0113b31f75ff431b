"""Extension points: the protocols that a plugin implements, and the registry that finds plugins by entry point."""
