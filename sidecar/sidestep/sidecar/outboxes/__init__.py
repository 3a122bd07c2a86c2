"""Outboxes of dead trainers that are for another machine's daemon, and who holds one."""
