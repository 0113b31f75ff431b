"""The dashboard. Empty until it joins."""
