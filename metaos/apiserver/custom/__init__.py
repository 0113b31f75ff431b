"""Kinds that users define. Loaded with the first CustomResourceDefinition."""
