"""The one training loop: objective (batch -> loss), loop (steps), state (exact resume), validation."""
