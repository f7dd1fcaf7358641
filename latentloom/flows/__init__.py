"""Order: resolve, compile, edit, batch, engine. No arithmetic."""
