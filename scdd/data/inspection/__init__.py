"""What a file holds and how fast it can be read, in words."""
