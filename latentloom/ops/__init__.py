"""Pure functions on tensors and integers."""
