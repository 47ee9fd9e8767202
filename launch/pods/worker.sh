#!/usr/bin/env bash
# One process of a pod, on its host: sets it up, runs it, and puts before each of its lines which process on which host
# speaks, as in "[3/16 host-name] step 100 ...". The launchers call it; it does the same where it is called by hand.
set -euo pipefail

usage() {
  cat <<'END'
bash launch/pods/worker.sh SUBCOMMAND

  run -- COMMAND     runs it here and now; SIGTERM goes to it, and its exit status comes back (a run that saves upon
                     SIGTERM ends with 0; MESHLM_STOPPED_STATUS=N makes that N, for those who start again what failed)
  start -- COMMAND   the same in the background, where it outlives the connection that started it
  tail [LINES]       its last lines (20), then what it goes on to say
  status             whether it runs, and its last line
  stop [SECONDS]     SIGTERM, upon which training saves; waits (600 seconds) until it has ended
  install            .venv with what training on a TPU needs

All but the first are for TPU VMs, and mean one run a host: its log is ~/meshlm_run/log, its process id ~/meshlm_run/pid.
END
}

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
state=$HOME/meshlm_run

fail() {
  echo "error: $HOSTNAME: $*" >&2
  exit 2
}

# What a TPU VM's metadata say, by the name that jax reads it by (jax/_src/clusters/cloud_tpu_cluster.py).
metadata() {
  curl --silent --fail --max-time 5 --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1" || true
}

# INDEX/COUNT of this process, by whoever started it: Slurm, a JobSet, or `start` on a TPU VM. They are what jax calls
# process_index and process_count: in multislice, slices one after the other.
process() {
  local index=0 hosts='' slice=0 slices=1 environment
  if [ -n "${SLURM_PROCID:-}" ]; then
    echo "$SLURM_PROCID/$SLURM_NTASKS"
    return
  elif [ -n "${MESHLM_PROCESSES:-}" ]; then
    echo "$JOB_COMPLETION_INDEX/$MESHLM_PROCESSES"
    return
  elif [ -n "${TPU_WORKER_HOSTNAMES:-}" ]; then
    index=${TPU_WORKER_ID:-0} hosts=$TPU_WORKER_HOSTNAMES
    slice=${MEGASCALE_SLICE_ID:-0} slices=${MEGASCALE_NUM_SLICES:-1}
  elif [ -n "${MESHLM_TPU_VM:-}" ]; then
    index=$(metadata agent-worker-number) hosts=$(metadata worker-network-endpoints) environment=$(metadata tpu-env)
    slice=$(sed -n "s/^MEGASCALE_SLICE_ID: *'\(.*\)'/\1/p" <<<"$environment")
    slices=$(sed -n "s/^MEGASCALE_NUM_SLICES: *'\(.*\)'/\1/p" <<<"$environment")
  fi
  hosts=${hosts//[^,]/} # a comma less than hosts
  hosts=$((${#hosts} + 1))
  echo "$((${slice:-0} * hosts + ${index:-0}))/$((hosts * ${slices:-1}))"
}

run() {
  local prefix child='' prefixer status stopped=no
  prefix="[$(process) $HOSTNAME] "
  cd "$checkout"
  [ ! -x .venv/bin/python ] || PATH=$checkout/.venv/bin:$PATH
  # A whole process group may be signalled: what writes the lines must outlive the one that still saves. And this shell
  # must stay, as a container and a job step end with their first process, whether or not all lines are written.
  exec 3> >(trap '' TERM INT && exec sed -u "s|^|$prefix|")
  prefixer=$!
  trap 'stopped=yes; kill -TERM $child 2>/dev/null || true' TERM INT
  PYTHONUNBUFFERED=1 "$@" >&3 2>&1 3>&- &
  child=$!
  exec 3>&-
  [ "$stopped" = no ] || kill -TERM "$child" 2>/dev/null || true # the signal came before the child's number was known
  while true; do # a signal ends wait, not the child
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  wait "$prefixer" || true
  if [ "$stopped" = yes ] && [ "$status" -eq 0 ]; then status=${MESHLM_STOPPED_STATUS:-0}; fi
  return "$status"
}

# Process id of the run that was started here, if it still runs.
running() {
  local pid
  pid=$(cat "$state/pid" 2>/dev/null) || return 1
  [[ $(ps -ww -o args= -p "$pid") == *launch/pods/worker.sh\ run* ]] || return 1
  echo "$pid"
}

start() {
  local pid
  if pid=$(running); then fail "a run is going on (process $pid): stop it first"; fi
  mkdir -p "$state"
  echo "$(date -u +%FT%TZ) start: $(printf '%q ' "$@")" >>"$state/log"
  setsid nohup bash "$checkout/launch/pods/worker.sh" run -- "$@" >>"$state/log" 2>&1 </dev/null &
  pid=$!
  echo "$pid" >"$state/pid"
  # What comes next may ask whether it runs: not before it can be told from this shell's fork.
  until running >/dev/null || ! kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
  echo "[$(process) $HOSTNAME] started as process $pid"
}

stop() {
  local pid end=$((SECONDS + ${1:-600}))
  if ! pid=$(running); then
    echo "[$(process) $HOSTNAME] nothing runs"
    return
  fi
  kill -TERM "$pid"
  while running >/dev/null; do
    [ "$SECONDS" -lt "$end" ] || fail "process $pid has not ended yet; it may still save: see its log"
    sleep 0.2
  done
  echo "[$(process) $HOSTNAME] ended"
}

status() {
  local pid
  if pid=$(running); then echo "[$(process) $HOSTNAME] runs as process $pid"; else echo "[$(process) $HOSTNAME] nothing runs"; fi
  tail -n 1 "$state/log" 2>/dev/null || true
}

install() {
  cd "$checkout"
  # The images of TPU VMs may bring along a Python that is too old, or no venv.
  if ! (. launch/setup.sh requirements.txt) && [ ! -x .venv/bin/python ]; then
    sudo apt-get update -qq
    sudo apt-get install -qq -y python3.11-venv || sudo apt-get install -qq -y python3-venv
  fi
  . launch/setup.sh requirements.txt
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt 'jax[tpu]'
  echo "[$(process) $HOSTNAME] installed"
}

subcommand=${1:-}
[ $# -eq 0 ] || shift
[ "$subcommand" = run ] || export MESHLM_TPU_VM=yes
case $subcommand in
  run | start)
    [ "${1:-}" = -- ] && [ $# -gt 1 ] || fail "$subcommand needs a command after --"
    shift
    "$subcommand" "$@"
    ;;
  tail)
    [ -e "$state/log" ] || fail "nothing was started here: $state/log is not there"
    exec tail -n "${1:-20}" -F "$state/log"
    ;;
  stop | status | install) "$subcommand" "$@" ;;
  --help | help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
