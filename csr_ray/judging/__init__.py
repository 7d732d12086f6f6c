"""Judges that read texts and answer in words, over any endpoint that speaks as OpenAI's does (docs/judges.md)."""
