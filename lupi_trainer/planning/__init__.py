"""What a run needs of its GPUs, from configurations alone: bytes, tokens, seconds, and what to change."""
