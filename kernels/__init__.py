"""The compiled kernels: one program for each kind of processor (README.md beside this file; choice.py picks)."""
