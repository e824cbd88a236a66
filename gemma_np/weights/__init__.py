"""Matrices: their names and shapes, what a code means, where it lies, and how they are loaded."""
