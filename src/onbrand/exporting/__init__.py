"""What other programs read: ComfyUI, Forge, A1111."""
