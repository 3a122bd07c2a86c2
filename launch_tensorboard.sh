#!/usr/bin/env bash
# Opens TensorBoard over what sidestep has logged; see usage() or --help.
set -euo pipefail

readonly DEFAULT_PORT=6006
readonly PORTS_TO_TRY=100 # how far above a taken port the next free one is looked for

default_logdir="${SIDESTEP_LOG_DIR:-results/logs}/tensorboard"
self=${BASH_SOURCE[0]}

usage() {
  cat <<USAGE
Usage: $self [LOGDIR] [PORT] [TENSORBOARD_ARGS...]

Opens TensorBoard over a log directory, at http://localhost:PORT/, until Ctrl+C.

  LOGDIR            where the event files are, here $default_logdir
                    (results/logs/tensorboard, or \$SIDESTEP_LOG_DIR/tensorboard where that is set);
                    a relative one starts at the directory you call from, as a trainer's does
  PORT              1 to 65535, by default $DEFAULT_PORT
  TENSORBOARD_ARGS  handed on as they are; all from the first that begins with a dash

  -h, --help        this text ('tensorboard --helpfull' has TensorBoard's own)

Examples:
  $self
  $self results/logs/tensorboard/vit-b
  $self results/logs/tensorboard 6007 --reload_interval 2
  $self --samples_per_plugin scalars=0,images=100

Exit codes: 1 no TensorBoard, or the port is taken; 2 wrong usage; otherwise TensorBoard's own.
USAGE
}

say() { printf '%s\n' "$*" >&2; }

wrong_usage() {
  say "$self: $1"
  say "Try '$self --help'."
  exit 2
}

# The words as one command line that can be pasted into a shell.
command_line() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# bash's own /dev/tcp: neither ss nor lsof nor nc is needed to see that somebody listens.
port_is_taken() {
  (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null || (exec 3<>"/dev/tcp/::1/$1") 2>/dev/null
}

# The pid that listens on a port: where ss or lsof is there, and may say it.
port_holder_pid() {
  local pid=''
  if command -v ss >/dev/null; then
    pid=$(ss -Hltnp "sport = :$1" 2>/dev/null | sed -n 's/.*pid=\([0-9]*\).*/\1/p' | head -n 1) || true
  fi
  if [[ -z $pid ]] && command -v lsof >/dev/null; then
    pid=$(lsof -nP -t -iTCP:"$1" -sTCP:LISTEN 2>/dev/null | head -n 1) || true
  fi
  printf '%s' "$pid"
}

next_free_port() {
  local candidate
  for ((candidate = $1 + 1; candidate <= $1 + PORTS_TO_TRY && candidate <= 65535; candidate++)); do
    if ! port_is_taken "$candidate"; then
      printf '%s' "$candidate"
      return
    fi
  done
}

find_tensorboard() {
  if command -v tensorboard; then return; fi
  local target here
  target=$(readlink -f -- "$self" 2>/dev/null) || target=$self # a link in ~/bin still finds its .venv
  here=$(CDPATH='' cd -- "$(dirname -- "$target")" && pwd)
  if [[ -x $here/.venv/bin/tensorboard ]]; then
    printf '%s\n' "$here/.venv/bin/tensorboard"
    return
  fi
  say "TensorBoard is missing: there is no 'tensorboard' on PATH and no $here/.venv/bin/tensorboard."
  say "Install it, into the environment that you train in or any other:"
  say "  pip install tensorboard"
  return 1
}

explain_taken_port() {
  local port=$1 logdir=$2 pid holder free
  shift 2
  pid=$(port_holder_pid "$port")
  say "Port $port is taken${pid:+ by process $pid}."
  if [[ -n $pid ]] && holder=$(ps -o args= -p "$pid" 2>/dev/null); then
    say "  $holder"
    if [[ $holder == *tensorboard* ]]; then
      say "That is a TensorBoard already: look at http://localhost:$port/, or end it with: kill $pid"
    fi
  fi
  free=$(next_free_port "$port")
  if [[ -n $free ]]; then
    say "Port $free is free:"
    say "  $(command_line "$self" "$logdir" "$free" "$@")"
  else
    say "Nor is any of the next $PORTS_TO_TRY free: give another as the second argument."
  fi
}

# An empty TensorBoard puzzles; but it fills by itself once a trainer logs, so it is worth opening.
warn_if_nothing_logged() {
  local logdir=$1
  if [[ ! -d $logdir ]]; then
    say "Nothing was logged yet: there is no directory $logdir (seen from $PWD)."
  elif [[ -z $(find -L "$logdir" -name '*tfevents*' -type f 2>/dev/null | head -n 1) ]]; then
    say "Nothing was logged yet: $logdir holds no event files."
  else
    return 0
  fi
  say "To log something: python client/examples/digits_jepa.py"
  say "or, in a trainer:  from sidestep import client; client.connect(\"my-run\"); client.emit({\"train/loss\": loss})"
  say "TensorBoard starts all the same and shows what comes, within seconds of its coming."
}

main() {
  if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    usage
    return
  fi

  local logdir=$default_logdir port=$DEFAULT_PORT
  if [[ $# -gt 0 && $1 != -* ]]; then
    logdir=${1:-$default_logdir}
    shift
    if [[ $# -gt 0 && $1 != -* ]]; then
      port=${1:-$DEFAULT_PORT}
      shift
    fi
  fi
  if [[ ! $port =~ ^[0-9]{1,5}$ ]] || ((10#$port < 1 || 10#$port > 65535)); then
    wrong_usage "the port is a number from 1 to 65535, not '$port'"
  fi
  port=$((10#$port))
  if [[ $logdir =~ ^[0-9]+$ && ! -e $logdir ]]; then
    wrong_usage "there is no directory '$logdir'; for a port: $(command_line "$self" "$default_logdir" "$logdir")"
  fi
  if [[ -e $logdir && ! -d $logdir ]]; then
    wrong_usage "'$logdir' is a file; give the directory that it is in"
  fi

  local argument url="http://localhost:$port/"
  for argument in "$@"; do
    case $argument in
      --logdir | --logdir=* | --logdir_spec | --logdir_spec=*) wrong_usage "the log directory is the first argument" ;;
      --port | --port=*) wrong_usage "the port is the second argument" ;;
      --host | --host=* | --path_prefix | --path_prefix=*) url='the address that it prints' ;;
    esac
  done

  local tensorboard
  tensorboard=$(find_tensorboard) || exit 1
  if port_is_taken "$port"; then
    explain_taken_port "$port" "$logdir" "$@"
    exit 1
  fi
  warn_if_nothing_logged "$logdir"
  say "TensorBoard over $logdir: $url (in a few seconds; Ctrl+C ends it)"
  if [[ -n ${SSH_CONNECTION:-} ]]; then
    say "From the machine you sit at: ssh -N -L $port:localhost:$port $(id -un)@$(uname -n)"
  fi
  exec "$tensorboard" --logdir "$logdir" --port "$port" "$@"
}

main "$@"
