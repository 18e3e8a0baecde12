"""What transformers and PEFT ask of sapp when they open, save and extend a model of block-sparse layers."""
