"""Identity, authorisation, policy and audit as pure decisions."""
