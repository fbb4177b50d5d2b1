"""Adder networks in 8-bit integers, for inference."""
