"""What a run is fed with: prompt files, images and chat templates."""
