"""The stages of a round, one file each: what the journal holds is returned, the rest is done and committed.

What this room does not know: how anything is generated, scored or trained (it sees ports), and how a person is told
about it (it calls a view).
"""
