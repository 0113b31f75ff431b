"""Data: when volumes are backed up, what is kept, and what may be brought back where. Pure."""
