"""Celery: the application, its task and messages, and the sweep for whoever waits."""
