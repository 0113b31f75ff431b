"""The nemo command."""
