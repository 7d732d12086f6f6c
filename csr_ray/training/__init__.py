"""What the trainers compute: batches, the shared prefix, the objectives."""
