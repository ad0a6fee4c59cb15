"""What measures come down to: lists of atoms, rows of them, and laws with a density. Knows integrands and kernels."""
