#!/usr/bin/env bash
# TPU VMs of Google Cloud: create them, put this checkout on all of their hosts, run one command on all of them.
#
# One process a host. In multislice nothing has to be set: a queued resource gives its hosts MEGASCALE_COORDINATOR_ADDRESS,
# MEGASCALE_NUM_SLICES and MEGASCALE_SLICE_ID as metadata, where jax.distributed.initialize() and libtpu look for them
# (jax/_src/clusters/cloud_tpu_cluster.py).
set -euo pipefail
# shellcheck source=launch/pods/options.sh
. "$(dirname "${BASH_SOURCE[0]}")/options.sh"
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

usage() {
  cat <<'END'
bash launch/pods/tpu_vm.sh SUBCOMMAND --name=NAME --zone=ZONE [--project=PROJECT] [--queued] [--slices=N] [--dry_run] ...

  create --type=v5litepod-16 --version=v2-alpha-tpuv5-lite [--spot]
                        asks for TPU VMs of this type with this runtime image
  status                what became of that, and what runs on the hosts
  copy                  puts this checkout (without .git, .venv, runs and .cache) into ~/meshlm of every host and installs
                        what it needs; again after changes
  start -- COMMAND      runs it in ~/meshlm on every host, where it goes on without this connection. Hosts must share the
                        file system of --workdir. Variables: -- env NAME=VALUE COMMAND
  tail [--worker=all]   what a run says: every line with its process and host. Of host 0, if nothing else is said
  stop                  SIGTERM on every host: training saves and ends; the same start continues it
  delete                gives the TPU VMs back

  --queued              a queued resource: the request waits until there is room
  --slices=N            so many slices of the type, as one queued resource (multislice); implies --queued
  --dry_run             prints every command instead of running it

--queued or --slices must be the same in all subcommands.
END
}

options=(name zone project type version slices worker)
switches=(queued spot dry_run)
name='' zone='' project='' type='' version='' slices=1 worker=0
queued=no spot=no dry_run=no

start_with 'create status copy start tail stop delete' "$@"
need "$subcommand" name zone
need_count slices
[ "$slices" = 1 ] || queued=yes

tpus=(gcloud compute tpus)
place=("--zone=$zone")
[ -z "$project" ] || place+=("--project=$project")
if [ "$queued" = yes ]; then kind='queued-resources'; else kind=tpu-vm; fi

# on WORKERS COMMAND...: on these hosts (all, or a number) of every slice; of slice 0 where it is a number.
on() {
  local workers=$1 where=()
  shift
  if [ "$queued" = yes ]; then
    where=(--node="$([ "$workers" = all ] && echo all || echo 0)")
  fi
  run "${tpus[@]}" "$kind" ssh "$name" "${place[@]}" "${where[@]}" "--worker=$workers" "--command=$*"
}

create() {
  need create type version
  local how=()
  [ "$spot" = no ] || how+=(--spot)
  if [ "$queued" = no ]; then
    run "${tpus[@]}" tpu-vm create "$name" "${place[@]}" "--accelerator-type=$type" "--version=$version" "${how[@]}"
  else
    if [ "$slices" -gt 1 ]; then
      how+=("--node-count=$slices" "--node-prefix=$name")
    else
      how+=("--node-id=$name")
    fi
    run "${tpus[@]}" queued-resources create "$name" "${place[@]}" "--accelerator-type=$type" \
      "--runtime-version=$version" "${how[@]}"
  fi
}

status() {
  run "${tpus[@]}" "$kind" describe "$name" "${place[@]}" --format='value(state)'
  on all 'bash meshlm/launch/pods/worker.sh status'
}

copy() {
  local archive where=()
  archive=${TMPDIR:-/tmp}/meshlm-$name.tar.gz
  [ "$queued" = no ] || where=(--node=all)
  run tar --create --gzip --file="$archive" --directory="$checkout" \
    --exclude=./.git --exclude='./.venv*' --exclude=./runs --exclude=./.cache --exclude=__pycache__ .
  run "${tpus[@]}" "$kind" scp "$archive" "$name:meshlm.tar.gz" "${place[@]}" "${where[@]}" --worker=all
  # What this checkout no longer has must go there, too.
  on all 'mkdir -p meshlm' \
    '&& find meshlm -mindepth 1 -maxdepth 1 ! -name ".venv*" ! -name runs ! -name .cache -exec rm -rf {} +' \
    '&& tar --extract --gzip --file=meshlm.tar.gz --directory=meshlm && bash meshlm/launch/pods/worker.sh install'
  run rm -f "$archive"
}

start() {
  need_command start
  on all "bash meshlm/launch/pods/worker.sh start -- $(quoted "${command[@]}")"
}

tail() { on "$worker" 'bash meshlm/launch/pods/worker.sh tail'; }

stop() { on all 'bash meshlm/launch/pods/worker.sh stop'; }

delete() {
  local all=()
  [ "$queued" = no ] || all=(--force) # with its TPU VMs
  run "${tpus[@]}" "$kind" delete "$name" "${place[@]}" "${all[@]}"
}

"$subcommand"
