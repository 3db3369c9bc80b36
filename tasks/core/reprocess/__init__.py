"""Many plates, again and again: which are new or changed, and their conversion. Never imports Prefect."""
