"""Block-sparse inference: kernels generated for this CPU, the Linear that uses them, the choice of the fastest."""
