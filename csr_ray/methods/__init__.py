"""The alignment methods, one short file each."""
