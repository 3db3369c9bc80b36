#!/usr/bin/env bash
# A worker on one machine, in the foreground: takes runs of a process work pool, so many at once as LIMIT says.
#
#   PREFECT_API_URL=http://server.example.org:4200/api PREFECT_CYTOTABLE_ALLOWED_ROOTS=/data:/scratch \
#       deployments/start-worker.sh POOL [LIMIT]
#
# The pool is made where it is not there: with a template that lets no run change the worker's command or environment.
set -euo pipefail

pool=${1:?the name of a work pool}
limit=${2:-1}
template=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)/process-pool.json

: "${PREFECT_API_URL:?the address of the server, which ends in /api}"
if [[ -z ${PREFECT_CYTOTABLE_ALLOWED_ROOTS+set} ]]; then
    echo "Set PREFECT_CYTOTABLE_ALLOWED_ROOTS: without it, whoever starts a run reads and writes whatever you may." >&2
    exit 2
fi

if ! made=$(prefect work-pool create "$pool" --type process --base-job-template "$template" 2>&1); then
    prefect work-pool inspect "$pool" >/dev/null 2>&1 || { echo "$made" >&2; exit 1; }
fi
exec prefect worker start --pool "$pool" --type process --limit "$limit" --name "$(uname -n)-$$"
