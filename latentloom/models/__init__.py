"""Adapters over diffusers classes behind Protocols, one file per model family."""
