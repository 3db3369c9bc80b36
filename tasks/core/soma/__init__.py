"""Fetching an axis table (obs or var) of a SOMA experiment in bounded memory."""
