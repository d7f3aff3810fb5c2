"""What a run will need before it starts: memory, exchange and time of each rank, from configs alone."""
