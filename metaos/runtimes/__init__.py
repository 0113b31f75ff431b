"""Where containers run. Loaded by entry point and imported by nobody."""
