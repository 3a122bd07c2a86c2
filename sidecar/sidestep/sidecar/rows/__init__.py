"""What the bytes of a journal row are: points, in the order and the portions that sinks want."""
