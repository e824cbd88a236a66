"""Text to token ids: our own encoder over mapped arrays, or the `tokenizers` package."""
