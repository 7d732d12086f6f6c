"""How CSR's answers are rolled out and judged: the tree of sentences, where a sentence ends, what it is worth."""
