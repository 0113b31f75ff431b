"""The one loop: level-triggered reconcilers, work queues and informers. Read reconciler.py first."""
