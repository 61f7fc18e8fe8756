"""One shard, claim to commit. No Celery."""
