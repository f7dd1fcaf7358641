"""Objects, records, runs and leases: the only home of zarr and fsspec."""
