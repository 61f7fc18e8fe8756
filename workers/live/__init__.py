"""Live requests between the server and the process of its engines."""
