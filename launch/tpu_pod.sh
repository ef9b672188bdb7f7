#!/usr/bin/env bash
# Runs a main on all workers of a Cloud TPU slice, by queued resources.
#
#   launch/tpu_pod.sh create          ask for the TPU, unless it is there; wait for it
#   launch/tpu_pod.sh setup           copy this clone's tracked files, and install them
#   launch/tpu_pod.sh run ARGS...     python -m ARGS... on all workers, without waiting
#   launch/tpu_pod.sh up ARGS...      all of it, and again after a preemption or a crash
#   launch/tpu_pod.sh logs            follow the log of one worker
#   launch/tpu_pod.sh status          of the TPU, and of the main on each worker
#   launch/tpu_pod.sh stop            the main saves and ends
#   launch/tpu_pod.sh delete          give the TPU back
#
# As in: launch/tpu_pod.sh up ddpm_jax.train --config configs/cifar.py \
#   --workdir gs://bucket/runs/cifar
# The run's folder must outlive the TPU: in a bucket, or on storage that MOUNT mounts.
#
# Environment:
#   ACCELERATOR      such as v5litepod-16 or v6e-16, to create
#   NAME=ddpm-jax    of the queued resource and of its node
#   ZONE             by default that of `gcloud config`
#   RUNTIME          the software version; by default the one for the accelerator
#   SPOT=1           ask for preemptible capacity
#   MOUNT            a command that `setup` runs first on each worker, to mount storage
#   WORKER=0         whose log to follow
#   MAX_RESTARTS=10  of a main that crashes; preemptions are not counted
#   POLL=30          seconds between looks
#   DRY_RUN=1        only print the commands
#
# This API gets only fixes, and does not serve TPU7x and later: for those, see
# launch/gke.sh.

set -euo pipefail
. "$(dirname "$0")/contract.sh"

NAME=${NAME:-ddpm-jax}
POLL=${POLL:-30}
HERE=ddpm_jax # the folder on the workers, in the home directory

tpus() { run gcloud --quiet compute tpus "$@" "--zone=$ZONE"; }
queued() { tpus queued-resources "$1" "$NAME" "${@:2}"; }
remote() { tpus tpu-vm ssh "$NAME" "--worker=$1" "--command=$2"; }

# on WORKER ARGS...: runs launch/tpu_worker.sh there ("all" for all of them).
on() { remote "$1" "bash $HERE/launch/tpu_worker.sh$(printf ' %q' "${@:2}")"; }

# Prints ABSENT, ACTIVE, PREEMPTED, or what else the queued resource says of itself.
state() {
  local answer node_state
  if ! answer=$(queued describe '--format=value(state.state)' 2>"$scratch/error"); then
    grep -q NOT_FOUND "$scratch/error" || die "gcloud: $(tail -n 1 "$scratch/error")"
    answer=ABSENT
  elif [ "$answer" = ACTIVE ]; then
    # The node is the first to know that it was preempted.
    node_state=$(tpus tpu-vm describe "$NAME" '--format=value(state)' 2>/dev/null) ||
      node_state=
    case $node_state in PREEMPTED | TERMINATED) answer=PREEMPTED ;; esac
  fi
  echo "$answer"
}

request() {
  local options=()
  [ -n "${ACCELERATOR:-}" ] || die "set ACCELERATOR, such as ACCELERATOR=v5litepod-16"
  if [ -n "${SPOT:-}" ]; then options+=(--spot); fi
  RUNTIME=${RUNTIME:-$(runtime)} || exit
  queued create "--node-id=$NAME" "--accelerator-type=$ACCELERATOR" \
    "--runtime-version=$RUNTIME" "${options[@]}"
}

# Google's table of software versions, under "PyTorch and JAX".
runtime() {
  case $ACCELERATOR in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) die "no software version is known for $ACCELERATOR: set RUNTIME" ;;
  esac
}

# Waits until the TPU is there; fails if it is taken before.
await() {
  local before='' now
  while :; do
    now=$(state) || now=UNKNOWN
    case $now in
      ACTIVE) return ;;
      FAILED) die "the request for $NAME failed: '$0 status' says why" ;;
      SUSPENDED | PREEMPTED) return 1 ;;
      ABSENT) die "$NAME was deleted" ;;
    esac
    [ "$now" = "$before" ] || say "$NAME is $now: waiting until it is ACTIVE"
    before=$now
    sleep "$POLL"
  done
}

create() {
  local now=ABSENT
  dry || now=$(state) || exit
  if [ "$now" = ABSENT ]; then request || exit; fi
  dry || await
}

setup() {
  local tree='' file=$scratch/tree.tar.gz
  if ! [ -e "$file" ]; then # after a preemption, what `up` began with, not later edits
    # A stash that is not kept: tracked files as they are now, and nothing else.
    dry || tree=$(git -c user.name=launch -c user.email=launch stash create) || return
    run git archive --format=tar.gz "--output=$file" "${tree:-HEAD}" || return
  fi
  tpus tpu-vm scp "$file" "$NAME:$HERE.tar.gz" --worker=all &&
    remote all "mkdir -p $HERE && tar -xzf $HERE.tar.gz -C $HERE" &&
    on all setup "${MOUNT:-}"
}

at_work() { [[ $(on all state 2>/dev/null) == *"main: running"* ]]; }

# Waits for the main on all workers, and leaves its code in `code`: the one that speaks
# against another run, if any does, since the others were lost by it (75, 134, ...).
# "lost" if the TPU went away.
follow() {
  local answers now unreachable=''
  while :; do
    # Each answer is a line "main: running" or "main: CODE", among those of gcloud.
    if answers=$(on all state 2>/dev/null | grep '^main: '); then
      unreachable=
      [[ $answers == *running* ]] || break
    else
      now=$(state) || now=UNKNOWN
      case $now in
        ABSENT | SUSPEND* | DELETING | PREEMPTED | FAILED) code=lost && return ;;
      esac
      [ -n "$unreachable" ] || say "cannot reach all workers of $NAME ($now): waiting"
      unreachable=1
    fi
    sleep "$POLL"
  done
  code=$(awk '$2 == "idle" { $2 = 75 }
    $2 ~ /^(1|2|130)$/ { last = $2 }
    $2 { code = $2 }
    END { print last ? last : code + 0 }' <<<"$answers")
}

up() {
  local restarts=0 now
  [[ " $* " =~ \ --workdir[\ =]/ ]] ||
    die "give --workdir gs://..., for it must outlive the TPU (docs/launching.md)"
  if dry; then
    create
    setup
    on all start "$@"
    on all state
    return
  fi
  while :; do
    now=$(state)
    case $now in
      SUSPENDING | DELETING) sleep "$POLL" && continue ;;
      SUSPENDED | PREEMPTED)
        say "$NAME was preempted: asking for another"
        queued delete --force
        ;;
    esac
    create || continue
    # It may be at work already: this script can be ended, and run again.
    if at_work || { setup && on all start "$@"; }; then
      say "running: '$0 logs' shows what it says"
      follow
    else
      code=75 # a worker that does not answer yet, or was taken meanwhile
    fi
    if [ "$code" = lost ]; then continue; fi
    if ! again "$code" "$restarts"; then return "$code"; fi
    if [ "$code" -ne 143 ]; then restarts=$((restarts + 1)); fi
    sleep "$POLL"
  done
}

command=${1:-}
case $command in
  -h | --help) usage && exit ;;
  run | up) [ $# -gt 1 ] || wrong_use "$command what? Such as: ddpm_jax.train" ;;
  create | setup | logs | status | stop | delete)
    [ $# -eq 1 ] || wrong_use "$command takes no arguments"
    ;;
  '') wrong_use "give a subcommand" ;;
  *) wrong_use "unknown subcommand '$command'" ;;
esac
shift
dry || command -v gcloud >/dev/null ||
  die "gcloud is not installed: see https://cloud.google.com/sdk/docs/install"
if [ -z "${ZONE:-}" ]; then
  ZONE=$(gcloud config get-value compute/zone 2>/dev/null) || true
  [ -n "$ZONE" ] || die "set ZONE, or: gcloud config set compute/zone ZONE"
fi
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

case $command in
  create) create || die "$NAME was preempted: '$0 delete', then create again" ;;
  setup) setup ;;
  run) on all start "$@" ;;
  up) up "$@" ;;
  logs) on "${WORKER:-0}" log ;;
  status)
    queued describe
    if dry || [ "$(state)" = ACTIVE ]; then on all state; fi
    ;;
  stop)
    dry || at_work || die "no main is running on $NAME, or it cannot be reached"
    on all stop
    dry || { follow && say "ended with code $code"; }
    ;;
  delete) queued delete --force ;;
esac
