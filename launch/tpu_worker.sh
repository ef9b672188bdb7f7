#!/usr/bin/env bash
# One worker's part of launch/tpu_pod.sh, which copies it there and calls it over ssh.
#
#   launch/tpu_worker.sh setup [MOUNT]    run MOUNT; Python, an environment, the package
#   launch/tpu_worker.sh start ARGS...    python -m ARGS..., which goes on without ssh
#   launch/tpu_worker.sh state            "main: idle", "main: running" or "main: CODE"
#   launch/tpu_worker.sh log              follow what it says
#   launch/tpu_worker.sh stop             SIGTERM: it saves and ends

set -euo pipefail
. "$(dirname "$0")/contract.sh"

case ${1:-} in
  -h | --help) usage && exit ;;
  setup | start | state | log | stop) ;;
  *) wrong_use "give one of these subcommands" ;;
esac
cd "$(dirname "$0")/.."
mkdir -p .launch # what is known of the main: its pid, its code, its log

running() {
  [ -e .launch/pid ] && [ ! -e .launch/code ] &&
    kill -0 "$(cat .launch/pid)" 2>/dev/null
}

case $1 in
  setup)
    # Asked twice, a mount fails, so MOUNT should ask first: mountpoint -q /runs || ...
    bash -c "${2:-true}" || die "MOUNT failed: $2"
    export PATH="$HOME/.local/bin:$PATH"
    # uv brings a Python of its own: that of the image may be too old.
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    uv venv --quiet --allow-existing --python 3.12 .venv
    uv pip install --quiet --python .venv/bin/python -e '.[tpu,gcs]'
    ;;
  start)
    if running; then die "a main is running already: stop it first"; fi
    rm -f .launch/pid .launch/code .launch/stop
    # shellcheck disable=SC2016 # for the inner shell
    nohup bash -c '
      "$@" &
      echo $! >.launch/pid
      wait $! && code=0 || code=$?
      echo "$code" >.launch/code.part && mv .launch/code.part .launch/code
    ' main .venv/bin/python -m "${@:2}" >>.launch/log 2>&1 </dev/null &
    until [ -s .launch/pid ]; do sleep 0.1; done
    ;;
  state)
    if running; then
      echo "main: running"
    elif [ ! -e .launch/pid ]; then
      echo "main: idle"
    else
      code=$(cat .launch/code 2>/dev/null) || code=137 # gone without a word: killed
      # Told to stop by hand, not by a preemption: as good as Ctrl-C.
      if [ "$code" = 143 ] && [ -e .launch/stop ]; then code=130; fi
      echo "main: $code"
    fi
    ;;
  log) exec tail -n 100 -F .launch/log ;;
  stop)
    if running; then
      touch .launch/stop
      kill -s TERM "$(cat .launch/pid)"
    fi
    ;;
esac
