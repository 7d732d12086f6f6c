"""The scorer actor: open_clip, batches of sentences, and how sentences get there."""
