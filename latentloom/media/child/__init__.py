"""What runs in the media child, the only home of PyAV."""
