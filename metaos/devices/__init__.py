"""devices: twins of low-end devices, their commands, credentials, rates and roll-outs as decisions. Pure."""
