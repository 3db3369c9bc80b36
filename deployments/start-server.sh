#!/usr/bin/env bash
# A Prefect server for several machines, in the foreground (systemd or a terminal keeps it):
#
#   PREFECT_API_DATABASE_CONNECTION_URL=postgresql+asyncpg://... deployments/start-server.sh [HOST [PORT [ADDRESS]]]
#
# HOST is what it listens on (default 127.0.0.1), ADDRESS how browsers and workers reach it (default http://HOST:PORT).
# The database's address and the server's password come from the environment, never from arguments, which every user of
# the machine can see. Settings of your own win over the ones that suit many small task runs.
set -euo pipefail

host=${1:-127.0.0.1}
port=${2:-4200}
address=${3:-http://$host:$port}

if [[ -z ${PREFECT_API_DATABASE_CONNECTION_URL:-} ]]; then
    echo "Set PREFECT_API_DATABASE_CONNECTION_URL, for example postgresql+asyncpg://prefect:PASSWORD@127.0.0.1/prefect." >&2
    exit 2
fi
if [[ $host != 127.0.0.1 && $host != localhost && -z ${PREFECT_SERVER_API_AUTH_STRING:-} ]]; then
    echo "Whoever reaches $host could run anything that is deployed: set PREFECT_SERVER_API_AUTH_STRING=USER:PASSWORD." >&2
    exit 2
fi

settings=$(prefect-cytotable server settings)
while IFS='=' read -r name value; do
    [[ -n ${!name+set} ]] || export "$name=$value"
done <<<"$settings"

export PREFECT_SERVER_API_HOST=$host PREFECT_SERVER_API_PORT=$port
export PREFECT_API_URL=http://127.0.0.1:$port/api PREFECT_SERVER_UI_API_URL=$address/api
exec prefect server start --host "$host" --port "$port"
