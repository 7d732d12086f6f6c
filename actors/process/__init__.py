"""What every actor process has: a log file and counters."""
