"""Arrow tables and their values, whatever their types."""
