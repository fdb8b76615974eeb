"""Files of parameters: reading what others wrote without running it, writing what they can read."""
