"""Intents and paths: what users ask for and whether it holds. Pure; adapters are loaded by entry point."""
