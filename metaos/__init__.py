"""NEMO, a meta operating system for the IoT-edge-cloud continuum.

The packages form layers; imports point down only. ``docs/architecture`` draws them and import-linter
(``pyproject.toml``) holds them.
"""

__version__ = "0.1.0"
