"""Concatenation of AnnData files on disk: values, plan, annotations, blocks of the large arrays. Never imports Prefect."""
