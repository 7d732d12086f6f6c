"""The stages of a round: what the journal holds is returned, the rest is done and committed."""
