"""What the sinks have in common when they make a value visible: arrays, pixels, buckets."""
