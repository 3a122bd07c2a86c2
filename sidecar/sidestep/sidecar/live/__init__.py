"""Numbers to whoever runs `tail`: as they come, and those before."""
