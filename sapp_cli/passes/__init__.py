"""What a mask does to a whole weight in every training step, in one pass over memory each."""
