#!/bin/sh
# A Milvus server for trying out, from PyPI's package: sh scripts/milvus.sh start, and stop
#   DATA=/disk/milvus PORT=19530 sh scripts/milvus.sh start
# Then -m search takes --index milvus://127.0.0.1:19530/NAME. Milvus' own settings may come from the environment too, such
# as PROXY_TIMETICKINTERVAL=20 (milliseconds; a search waits for one or two). This server has no credentials and listens on all of the
# machine's addresses: only for a machine that others can't reach. For production see search/README.md.
set -eu
NEEDS="requirements-search.txt requirements-scale.txt"
. "$(dirname "$0")/env.sh"

DATA=${DATA:-cache/milvus}      # all that it keeps
PORT=${PORT:-19530}

running() { [ -f "$DATA/server.pid" ] && kill -0 "$(cat "$DATA/server.pid")" 2>/dev/null; }
answers() {
    "$PY" -c 'import sys; from pymilvus import MilvusClient; MilvusClient(sys.argv[1], timeout=2).list_collections()' \
        "http://127.0.0.1:$PORT" 2>/dev/null
}

case ${1:-} in
start)
    running && { echo "error: a server of $DATA is running; sh $0 stop ends it" >&2; exit 1; }
    "$PY" -c 'import socket, sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)' "$PORT" 2>/dev/null &&
        { echo "error: port $PORT is another server's; choose one: PORT=19531 sh $0 start" >&2; exit 1; }
    mkdir -p "$DATA"
    # Ports beside --proxy-port are taken as they are free; etcd's would be the same ones for every server.
    for urls in listen-client advertise-client listen-peer initial-advertise-peer; do
        echo "$urls-urls: http://127.0.0.1:0"
    done > "$DATA/etcd.yaml"
    echo "initial-cluster: default=http://127.0.0.1:0" >> "$DATA/etcd.yaml"
    export ETCD_CONFIG_PATH=etcd.yaml  # from DATA
    nohup "$PY" -c 'import milvus; milvus.main()' --data "$DATA" --proxy-port "$PORT" > "$DATA/server.log" 2>&1 &
    echo $! > "$DATA/server.pid"
    for _ in $(seq 90); do
        answers && { echo "milvus://127.0.0.1:$PORT/NAME, data in $DATA"; exit 0; }
        running || break
        sleep 1
    done
    tail -5 "$DATA/server.log" >&2
    echo "error: the server did not start; see $DATA/server.log and $DATA/logs" >&2
    exit 1
    ;;
stop)
    running || { echo "no server of $DATA is running"; exit 0; }
    kill -INT "$(cat "$DATA/server.pid")"
    for _ in $(seq 60); do running || break; sleep 1; done
    running && { echo "error: process $(cat "$DATA/server.pid") does not end" >&2; exit 1; }
    rm "$DATA/server.pid"
    ;;
*)
    echo "usage: sh $0 start|stop" >&2
    exit 2
    ;;
esac
