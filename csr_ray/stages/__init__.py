"""The stages of a cycle, one file each. A stage returns what the journal holds, and does and commits the rest.

This room does not know how anything is generated, scored or trained (it sees ports), nor how a person is told about
it (it calls a view).
"""
