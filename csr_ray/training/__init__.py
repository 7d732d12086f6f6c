"""What training computes, as plain functions of tensors: batches, the shared-prefix layout, the objectives."""
