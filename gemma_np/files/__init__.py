"""Bytes on disk, whatever they mean: files mapped, safetensors, and files that appear when they are complete."""
