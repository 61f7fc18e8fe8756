"""What is done to a job that exists."""
