"""The operator on bytes: library.py (as PyTorch sees it), reference.py (its definition), cpu.py (the C++ kernels)."""
