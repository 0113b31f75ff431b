"""Tests of the nemo command."""
