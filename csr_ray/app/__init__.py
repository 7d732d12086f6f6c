"""From a command to a finished run: the commands, the plan, the check, the doctor and the console."""
