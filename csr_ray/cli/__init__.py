"""The commands of the command line, a file each: `add_parser` says what it takes, `_NAME` calls what does it.

What several of them share is in `arguments`, and in which order words may stand in `order`. Whatever is heavy is
imported inside of the function that needs it, so that `--help` is answered at once.
"""
