"""Training: the whole typed run, a loop of one screen, and everything periodic as a callback with its own state."""
