"""A model on disk: a folder with a checkpoint or a quantised model, opened and written."""
