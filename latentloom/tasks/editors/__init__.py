"""The editors: one module for each kind of ``edit``, or for kinds that share their steps."""
