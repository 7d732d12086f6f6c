"""The train group: Ray Train, TRL, PEFT and DeepSpeed, fed cycle by cycle."""
