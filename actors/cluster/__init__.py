"""Joining a Ray cluster or starting a private one."""
