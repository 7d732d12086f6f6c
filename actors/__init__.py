"""The machinery: Ray actors that serve, score and train a policy. See `csr_ray` for the algorithm."""
