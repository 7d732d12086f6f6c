"""The policy's weights on disk: merged, summed, packed for travel."""
