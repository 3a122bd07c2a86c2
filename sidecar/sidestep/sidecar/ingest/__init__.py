"""From frames to journalled rows: clients, their sessions, their books."""
