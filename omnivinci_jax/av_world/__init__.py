"""av_world: clips of moving shapes and plain sounds, with questions that need eyes, ears or both in time."""
