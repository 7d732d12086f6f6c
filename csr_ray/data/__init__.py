"""What goes into a run and its models: prompt files, images, changed pictures and chat templates."""
