"""Floor 1: from a folder to latents. records (rows) -> images (pixels) -> latents (encoded once, kept in shards)."""
