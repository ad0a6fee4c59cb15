"""Compute kernels: arrays in, arrays out, no measure known."""
