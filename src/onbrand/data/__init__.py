"""A user's folder -> latents: records (rows), images (pixels), latents (encoded once, kept in shards)."""
