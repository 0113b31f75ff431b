"""The message bus. Empty until devices and data join: no NATS server is started yet."""
