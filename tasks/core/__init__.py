"""The library under the flows: reads, plans, joins, writes and accounts. It never imports Prefect."""
