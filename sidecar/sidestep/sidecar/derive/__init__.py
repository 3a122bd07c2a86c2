"""What the daemon computes from what was sent: spectra of representations."""
