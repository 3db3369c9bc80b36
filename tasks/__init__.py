"""Prefect tasks: the stages of a conversion under their names, with retries and caching."""
