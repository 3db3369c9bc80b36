"""The memory of a run: each process under memray, the process tree's resident size, and the profile made of both."""
