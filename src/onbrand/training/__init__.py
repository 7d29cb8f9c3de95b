"""The one training loop: config (what a run is), objective (batch -> loss), loop (steps), state (exact resume)."""
