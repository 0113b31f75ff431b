"""Kubernetes clusters as members: an agent that applies a cluster's Works by server-side apply.

What is decided (order, ownership, health, capacity, what a refusal means) is decided by functions without I/O; one module
speaks to the member's API, one walks through the Works.
"""
