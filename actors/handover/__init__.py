"""How new weights reach every generator, and how each proves that it serves them."""
