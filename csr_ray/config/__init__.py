"""Every key of a config: what there is (schema), what presets set, how a file is read (load)."""
