"""Data catalogue and sovereignty. Empty until the data fabric joins."""
