"""The Kubernetes API: a registry with the rules, and the HTTP form around it."""
