"""What exists: kinds, names, quantities, errors and the snapshots that decisions read. No behaviour, no I/O."""
