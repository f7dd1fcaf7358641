"""What people write and runs record. No torch."""
