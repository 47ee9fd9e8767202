#!/usr/bin/env bash
# Sets up and runs one process of a pod, on its host. Each line that the process prints gets a prefix with the process
# and the host, as in "[3/16 host-name] step 100 ...". The launchers call this script; it works by hand, too.
set -euo pipefail

usage() {
  cat <<'END'
bash launch/pods/worker.sh SUBCOMMAND

  run -- COMMAND     runs the command, forwards SIGTERM to it, and returns its exit status. A run that saves on SIGTERM
                     ends with 0; MESHLM_STOPPED_STATUS=N makes that N, for schedulers that restart only failed jobs
  start -- COMMAND   does the same in the background, independent of the connection that started it
  tail [LINES]       prints the last lines of the log (20), then follows it
  status             prints whether a run is active, and the last line of its log
  stop [SECONDS]     sends SIGTERM, so that training saves, and waits until it has ended (600 seconds at most)
  install            creates .venv with the requirements of training on a TPU

All but `run` are for TPU VMs, with one run per host: its log is ~/meshlm_run/log, its process id is in ~/meshlm_run/pid.
END
}

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
state=$HOME/meshlm_run

fail() {
  echo "error: $HOSTNAME: $*" >&2
  exit 2
}

# Prints an attribute of a TPU VM's metadata; jax reads the same ones (jax/_src/clusters/cloud_tpu_cluster.py).
metadata() {
  curl --silent --fail --max-time 5 --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1" || true
}

# Prints INDEX/COUNT of this process, from the variables of Slurm or a JobSet, or from the metadata of a TPU VM. They
# equal jax's process_index and process_count; in multislice, the processes of slice 0 come first, and so on.
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
  hosts=${hosts//[^,]/} # keeps only the commas, one fewer than hosts
  hosts=$((${#hosts} + 1))
  echo "$((${slice:-0} * hosts + ${index:-0}))/$((hosts * ${slices:-1}))"
}

run() {
  local prefix child='' prefixer status stopped=no
  prefix="[$(process) $HOSTNAME] "
  cd "$checkout"
  [ ! -x .venv/bin/python ] || PATH=$checkout/.venv/bin:$PATH
  # A signal may go to the whole process group. So sed, which writes the lines, ignores it and outlives a command that
  # still saves. This shell waits for both, because a container or a job step ends with its first process.
  exec 3> >(trap '' TERM INT && exec sed -u "s|^|$prefix|")
  prefixer=$!
  trap 'stopped=yes; kill -TERM $child 2>/dev/null || true' TERM INT
  PYTHONUNBUFFERED=1 "$@" >&3 2>&1 3>&- &
  child=$!
  exec 3>&-
  [ "$stopped" = no ] || kill -TERM "$child" 2>/dev/null || true # the signal came before we knew the child's process id
  while true; do # a signal interrupts wait, but the child continues
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  wait "$prefixer" || true
  if [ "$stopped" = yes ] && [ "$status" -eq 0 ]; then status=${MESHLM_STOPPED_STATUS:-0}; fi
  return "$status"
}

# Prints the process id of the run on this host; fails if none is running.
running() {
  local pid
  pid=$(cat "$state/pid" 2>/dev/null) || return 1
  [[ $(ps -ww -o args= -p "$pid") == *launch/pods/worker.sh\ run* ]] || return 1
  echo "$pid"
}

start() {
  local pid
  if pid=$(running); then fail "a run is still running (process $pid); stop it first"; fi
  mkdir -p "$state"
  echo "$(date -u +%FT%TZ) start: $(printf '%q ' "$@")" >>"$state/log"
  setsid nohup bash "$checkout/launch/pods/worker.sh" run -- "$@" >>"$state/log" 2>&1 </dev/null &
  pid=$!
  echo "$pid" >"$state/pid"
  # `running` recognizes the process only after its exec; a `status` or `stop` right after this must find it.
  until running >/dev/null || ! kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
  echo "[$(process) $HOSTNAME] started as process $pid"
}

stop() {
  local pid end=$((SECONDS + ${1:-600}))
  if ! pid=$(running); then
    echo "[$(process) $HOSTNAME] nothing is running"
    return
  fi
  kill -TERM "$pid"
  while running >/dev/null; do
    [ "$SECONDS" -lt "$end" ] || fail "process $pid has not ended yet; it may still be saving, see its log"
    sleep 0.2
  done
  echo "[$(process) $HOSTNAME] ended"
}

status() {
  local pid
  if pid=$(running); then
    echo "[$(process) $HOSTNAME] running as process $pid"
  else
    echo "[$(process) $HOSTNAME] nothing is running"
  fi
  tail -n 1 "$state/log" 2>/dev/null || true
}

install() {
  cd "$checkout"
  # The Python of a TPU VM's image may be too old, or have no venv.
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
    [ -e "$state/log" ] || fail "nothing was started on this host; there is no $state/log"
    exec tail -n "${1:-20}" -F "$state/log"
    ;;
  stop | status | install) "$subcommand" "$@" ;;
  --help | help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
