"""Pure maths on tensors: no modules, files, devices, clocks, randomness or printing."""
