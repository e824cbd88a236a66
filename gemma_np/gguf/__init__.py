"""GGUF, the file format of llama.cpp: read as it is, and written."""
