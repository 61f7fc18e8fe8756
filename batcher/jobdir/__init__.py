"""The truth on disk: what a job is, kept in immutable files."""
