"""A prompts file becomes a job."""
