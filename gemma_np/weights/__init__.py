"""Matrices: their names and shapes, what a code means, where codes are, and how they are loaded."""
