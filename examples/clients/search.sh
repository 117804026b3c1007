#!/usr/bin/env bash
# The mesh with nothing but curl.
#
#   search.sh health
#   search.sh search  '{"query": "late invoice", "limit": 3}'
#   search.sh action  '{"action": "refund", "node": "crm-app", "params": {"order": "A-1001", "cents": 500},
#                       "idempotency_key": "refund-A-1001"}'
#   search.sh history 'node=crm-app&limit=5'
#
# MESH_TOKEN is an access token (`meshctl tokens issue`) or a node's API key; MESH_HTTP_URL the
# gateway, default http://127.0.0.1:8080. Exit code 22: the gateway refused, and said why.
set -euo pipefail

base=${MESH_HTTP_URL:-http://127.0.0.1:8080}/api/ai-engine

# The token goes through a pipe: what is on a command line, every user of this machine can read.
call() {
    curl --silent --show-error --fail-with-body --max-time 60 \
        --header @<(printf 'Authorization: Bearer %s\n' "${MESH_TOKEN:?set it to an access token}") \
        --header 'Content-Type: application/json' "$@"
    echo
}

case ${1:-} in
    health) curl --silent --show-error --fail-with-body --max-time 10 "$base/health" && echo ;;
    # --retry waits as long as Retry-After says, and so it does when the mesh is busy (429, 503).
    search) call --retry 3 --data "${2:?a JSON object}" "$base/search" ;;
    # Asked again only if it names itself: with its key it runs once, however often it is asked.
    action)
        again=0
        case ${2:?a JSON object} in *'"idempotency_key"'*) again=3 ;; esac
        call --retry "$again" --data "$2" "$base/actions"
        ;;
    history) call --retry 3 "$base/actions?${2:-}" ;;
    *) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
