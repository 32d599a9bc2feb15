#!/usr/bin/env bash
# Generates a Python client from the protos and walks it through one node. Needs python3 with venv, and PyPI.
set -euo pipefail
cd "$(dirname "$0")/../.."
quorate="${1:?usage: run.sh PATH_OF_QUORATE}"
cache="${QUORATE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/quorate}/python"
[ -x "$cache/bin/python" ] || python3 -m venv "$cache"
"$cache/bin/pip" install --quiet --disable-pip-version-check 'grpcio==1.76.0' 'grpcio-tools==1.76.0'

work=$(mktemp -d)
node=""
cleanup() { [ -z "$node" ] || kill "$node" 2>/dev/null || true; rm -rf "$work"; }
trap cleanup EXIT
mkdir "$work/stubs"
"$cache/bin/python" -m grpc_tools.protoc -Iproto --python_out="$work/stubs" --grpc_python_out="$work/stubs" \
  proto/quorate/v1/*.proto

read -r grpc http < <(python3 - <<'PY'
import socket
held = [socket.socket() for _ in range(2)]
for one in held:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))
PY
)
"$quorate" dev --listen "127.0.0.1:$grpc" --http-listen "127.0.0.1:$http" 2>"$work/node.log" &
node=$!
for _ in $(seq 100); do
  python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$http/health/ready', timeout=1)" 2>/dev/null && break
  kill -0 "$node" 2>/dev/null || { cat "$work/node.log" >&2; exit 1; }
  sleep 0.1
done
timeout 60 "$cache/bin/python" client/python/conformance.py "$work/stubs" "127.0.0.1:$grpc"
