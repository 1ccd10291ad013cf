#!/usr/bin/env bash
# Start or stop a Ray cluster on machines reached by ssh. Run it on the head node, from any folder.
#
#   start_on_premise.sh start HEAD_IP [WORKER...]     WORKER: anything that ssh takes, e.g. user@10.0.0.12
#   start_on_premise.sh status
#   start_on_premise.sh stop [WORKER...]
#
# Settings, from the environment:
#   RAY_AUTH_MODE    "token": only holders of a secret may join; generated if missing, copied to the workers (default);
#                    "disabled": whoever reaches the ports may run code
#   RAY_BIN          path of ray, the same on every node    (default: .venv/bin/ray of this repository)
#   RAY_HEAD_PORT    port of the head                       (default: 6379)
#   RAY_HEAD_ARGS    more options of `ray start`, head      (e.g. "--num-cpus 4": leave cores to the driver)
#   RAY_WORKER_ARGS  more options of `ray start`, workers   (e.g. "--num-cpus 16 --num-gpus 2")
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ray=${RAY_BIN:-$root/.venv/bin/ray}
port=${RAY_HEAD_PORT:-6379}
read -ra head_args <<<"${RAY_HEAD_ARGS:-}"
worker_args=${RAY_WORKER_ARGS:-}
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
export PATH=${ray%/*}:$PATH # submitted runs find the same python by name

usage() {
    sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

on_worker() { # on_worker WORKER COMMAND: passes stdin on; never asks for a password
    ssh -o BatchMode=yes -o ConnectTimeout=10 "$1" "$2" >/dev/null || {
        echo "$1: failed: $2" >&2
        return 1
    }
}

start_worker() { # start_worker WORKER HEAD_IP
    if [[ $RAY_AUTH_MODE == token ]]; then
        "$ray" get-auth-token 2>/dev/null |
            on_worker "$1" 'umask 077 && mkdir -p ~/.ray && cat >~/.ray/auth_token' || return 1
    fi
    on_worker "$1" "PATH='${ray%/*}':\$PATH RAY_AUTH_MODE=$RAY_AUTH_MODE '$ray' start --address '$2:$port' --disable-usage-stats $worker_args" </dev/null
}

start() {
    [[ $# -ge 1 ]] || usage
    local head_ip=$1 failed=0 worker
    shift
    [[ $RAY_AUTH_MODE != token ]] || (umask 077 && "$ray" get-auth-token --generate) >/dev/null 2>&1
    "$ray" start --head --node-ip-address "$head_ip" --port "$port" --dashboard-host 127.0.0.1 \
        --disable-usage-stats "${head_args[@]}" >/dev/null
    echo "head    $head_ip:$port"
    for worker in "$@"; do
        if start_worker "$worker" "$head_ip"; then echo "worker  $worker"; else failed=1; fi
    done
    echo "now: export RAY_AUTH_MODE=$RAY_AUTH_MODE; fedpft submit CONFIG, or fedpft run CONFIG --address auto"
    return "$failed"
}

stop() { # workers first, so that the head sees them leave
    local failed=0 worker
    for worker in "$@"; do
        on_worker "$worker" "'$ray' stop" </dev/null || failed=1
    done
    "$ray" stop >/dev/null
    echo "stopped"
    return "$failed"
}

command=${1:-}
shift $(($# > 0))
case $command in
    start) start "$@" ;;
    status) "$ray" status ;;
    stop) stop "$@" ;;
    *) usage ;;
esac
