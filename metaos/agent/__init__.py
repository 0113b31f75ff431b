"""A site's own head: it keeps desired state on disk, runs and heals pods, and only ever dials out."""
