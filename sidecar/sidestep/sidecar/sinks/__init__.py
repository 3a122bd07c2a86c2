"""Where points are written: one module a destination, each behind the `Sink` protocol."""
