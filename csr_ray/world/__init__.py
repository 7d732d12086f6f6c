"""The embedded world: scenes with a co-occurrence prior, and the small models that learn it.

Everything it makes leaves through an ordinary folder (Hugging Face policy, open_clip scorer, prompt files), so the
rest of the package cannot tell it from a user's own data and models.
"""
