"""The train group: Ray Train, TRL, PEFT and DeepSpeed, fed round by round."""
