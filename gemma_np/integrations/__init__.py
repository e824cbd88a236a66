"""Adaptors for the frameworks that people use: a file for each, which imports its framework; nothing imports them."""
