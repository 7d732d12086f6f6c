"""What a config asks of machines, as pure functions: who gets what, whether it fits, what it costs."""
