"""Where a run lives on disk: its folder, its journal, its tables, and writes that happen whole or not at all."""
