"""Many boards on one machine."""
