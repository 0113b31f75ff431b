"""The digital twin. Empty until virtual time joins."""
