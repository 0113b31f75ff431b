"""The demonstration: NEMO's main job on one machine, with real processes. ``python -m examples.demo``."""
