"""What objects must mean, by domain: functions from an object (and the old one) to causes. Pure."""
