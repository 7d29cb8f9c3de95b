"""For other programs: what ComfyUI, Forge and A1111 read, and lines of ours in other people's trainers."""
