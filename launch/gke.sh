#!/usr/bin/env bash
# Runs a main on a TPU slice of a GKE cluster, as a JobSet (launch/gke_jobset.yaml).
#
#   launch/gke.sh run ARGS...     python -m ARGS... on all hosts of the slice
#   launch/gke.sh show ARGS...    print the manifest that `run` would send
#   launch/gke.sh logs            follow the log of one worker
#   launch/gke.sh status          of the JobSet and its pods
#   launch/gke.sh delete          the main saves and ends, and the JobSet is removed
#
# As in: IMAGE=... launch/gke.sh run ddpm_jax.train \
#   --config configs/cifar.py --workdir gs://bucket/runs/cifar
#
# Environment:
#   IMAGE            with the package and its extras; docs/launching.md makes one
#   CLAIM            instead of a bucket, a PersistentVolumeClaim that all hosts can
#                    write (ReadWriteMany)
#   RUNS=/runs       where it is seen; --workdir must be below it then
#   NAME=ddpm-jax
#   ACCELERATOR=tpu-v5-lite-podslice  and
#   TOPOLOGY=4x4     of the node pool
#   CHIPS=4          of each host
#   GRACE=120        seconds to save in, from being told to stop until killed
#   MAX_RESTARTS=100 preemptions are counted, too
#   WORKER=0         whose log to follow
#   DRY_RUN=1        only print the commands

set -euo pipefail
. "$(dirname "$0")/contract.sh"

NAME=${NAME:-ddpm-jax}
RUNS=${RUNS:-/runs}
ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice}
TOPOLOGY=${TOPOLOGY:-4x4}
CHIPS=${CHIPS:-4}
GRACE=${GRACE:-120}
MAX_RESTARTS=${MAX_RESTARTS:-100}
PODS=jobset.sigs.k8s.io/jobset-name=$NAME

# A list in JSON, which is YAML.
json() {
  local text item=''
  for text in "$@"; do
    text=${text//\\/\\\\}
    printf '%s"%s"' "$item" "${text//\"/\\\"}"
    item=', '
  done
}

manifest() {
  local text name HOSTS ARGS
  [ -n "${IMAGE:-}" ] || die "set IMAGE, a container image with the package in it"
  [[ $ACCELERATOR == tpu* ]] ||
    die "ACCELERATOR is $ACCELERATOR, not a node label such as tpu-v5-lite-podslice"
  [[ $TOPOLOGY =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || die "TOPOLOGY is $TOPOLOGY, not like 4x4"
  local place=gs:/ what="or set CLAIM, a PersistentVolumeClaim for the run's folder"
  if [ -n "${CLAIM:-}" ]; then place=$RUNS what="which is where CLAIM is seen"; fi
  [[ " $* " =~ \ --workdir[\ =]"$place"/ ]] || die "give --workdir $place/..., $what"
  HOSTS=$((${TOPOLOGY//x/*} / CHIPS))
  [ $((HOSTS * CHIPS)) -eq $((${TOPOLOGY//x/*})) ] ||
    die "$TOPOLOGY chips cannot be cut into hosts of $CHIPS: set CHIPS"
  # shellcheck disable=SC2034 # by its name, below
  ARGS=$(json "$@")
  text=$(sed '/^ *#/d' "$(dirname "$0")/gke_jobset.yaml")
  if [ -z "${CLAIM:-}" ]; then text=${text%$'\n'*volumeMounts:*}; fi
  CLAIM=${CLAIM:-}
  for name in NAME IMAGE CLAIM RUNS ACCELERATOR TOPOLOGY CHIPS HOSTS GRACE \
    MAX_RESTARTS ARGS; do
    text=${text//"\${$name}"/"${!name}"}
  done
  echo "$text"
}

command=${1:-}
case $command in
  -h | --help) usage && exit ;;
  run | show) [ $# -gt 1 ] || wrong_use "$command what? Such as: ddpm_jax.train" ;;
  logs | status | delete) [ $# -eq 1 ] || wrong_use "$command takes no arguments" ;;
  '') wrong_use "give a subcommand" ;;
  *) wrong_use "unknown subcommand '$command'" ;;
esac
shift
[ "$command" = show ] || dry || command -v kubectl >/dev/null ||
  die "kubectl is not installed: see https://kubernetes.io/docs/tasks/tools"

case $command in
  show) manifest "$@" ;;
  run)
    text=$(manifest "$@")
    # Not `apply`: for a JobSet that has ended, it would do nothing, and say so quietly.
    run kubectl create --filename=- <<<"$text"
    ;;
  logs)
    run kubectl logs --follow --tail=100 \
      "--selector=$PODS,batch.kubernetes.io/job-completion-index=${WORKER:-0}"
    ;;
  status)
    run kubectl get jobset "$NAME"
    run kubectl get pods "--selector=$PODS" --output=wide
    ;;
  delete) run kubectl delete jobset "$NAME" --cascade=foreground ;;
esac
