"""A run on disk: its folder, its journal and its tables, and how files are written whole or not at all."""
