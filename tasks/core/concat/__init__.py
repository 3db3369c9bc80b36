"""Concatenation of AnnData files on disk: plan, annotations, blocks of the large arrays. Never imports Prefect."""
