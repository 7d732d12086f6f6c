"""Makes pages of the documentation site from the code, while mkdocs builds it (`make docs`); ships with nothing."""
