"""Data and where it lies: volumes that move with their workloads, and their backups. The catalogue comes with the data fabric."""
