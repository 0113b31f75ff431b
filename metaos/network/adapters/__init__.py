"""Network adapters, loaded by entry point and imported by nobody."""
