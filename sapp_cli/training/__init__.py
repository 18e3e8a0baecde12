"""The step loop and what stands around it: batches, optimizers, learning rates, objectives, evaluation."""
