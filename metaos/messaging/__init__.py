"""The message bus: its protocol and subjects, NATS and its servers, accounts and credentials, and MQTT for devices."""
