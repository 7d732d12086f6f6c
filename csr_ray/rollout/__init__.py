"""Growing answers and judging them: the tree search, sentences, rewards."""
