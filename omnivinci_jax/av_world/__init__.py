"""av_world: clips of moving shapes and simple sounds, with questions that need vision, hearing or both in time."""
