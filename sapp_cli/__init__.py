"""sapp: give it a trained PyTorch checkpoint, get it back block-sparse, smaller and faster."""
