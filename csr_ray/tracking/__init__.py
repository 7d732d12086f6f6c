"""Where a run's figures go besides its own folder: TensorBoard, W&B, MLflow, trackio (docs/tracking.md)."""
