# shellcheck shell=bash
# What the launchers agree on, to be sourced: how they speak, and when to run again.

# The comment at the top of a launcher, up to its first empty line, is its usage.
usage() { sed -n '2,/^$/s/^#\( \|$\)//p' "$0"; }

wrong_use() {
  echo "error: $*" >&2
  usage >&2
  exit 2
}

die() {
  echo "error: $*" >&2
  exit 1
}

# need_bash MAJOR MINOR: macOS, for one, comes with 3.2.
need_bash() {
  ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= $1 * 100 + $2)) ||
    die "this script needs bash $1.$2 or later, and this is $BASH_VERSION"
}
need_bash 4 4

say() { echo "launch: $*" >&2; }

dry() { [ -n "${DRY_RUN:-}" ]; }

# Runs a command, or with DRY_RUN=1 only prints it, as a shell would read it.
run() {
  if dry; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# again CODE RESTARTS: says whether to run a main again that ended with CODE, and that
# was run again RESTARTS times before. It goes on from its last checkpoint.
again() {
  case $1 in
    0) say "done" && return 1 ;;
    1 | 2) say "ended with code $1, and would again: not restarted" && return 1 ;;
    130) say "stopped by hand: not restarted" && return 1 ;;
    143) say "told to stop, and saved: restarting" && return 0 ;;
  esac
  # A lost process (75), a crash or a kill: it may help, but not for ever.
  if [ "$2" -ge "${MAX_RESTARTS:=10}" ]; then
    say "ended with code $1 after $2 restarts (MAX_RESTARTS): not restarted"
    return 1
  fi
  say "ended with code $1: restarting ($(($2 + 1)) of at most $MAX_RESTARTS)"
}
