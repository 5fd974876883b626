"""Files: pictures with their parameters inside, model folders, checkpoints."""
