#!/usr/bin/env bash
# Creates TPU VMs of Google Cloud, copies this checkout to all of their hosts, and runs one command on all of them.
#
# There is one process per host. Multislice needs no settings: a queued resource gives its hosts the metadata
# MEGASCALE_COORDINATOR_ADDRESS, MEGASCALE_NUM_SLICES and MEGASCALE_SLICE_ID, where jax.distributed.initialize() and
# libtpu look for them (jax/_src/clusters/cloud_tpu_cluster.py).
set -euo pipefail
# shellcheck source=launch/pods/options.sh
. "$(dirname "${BASH_SOURCE[0]}")/options.sh"
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

usage() {
  cat <<'END'
bash launch/pods/tpu_vm.sh SUBCOMMAND --name=NAME --zone=ZONE [--project=PROJECT] [--queued] [--slices=N] [--dry_run] ...

  create --type=v5litepod-16 --version=v2-alpha-tpuv5-lite [--spot]
                        requests TPU VMs of this type with this runtime image
  status                prints the state of the TPU VMs, and what runs on the hosts
  copy                  copies this checkout (without .git, .venv, runs and .cache) to ~/meshlm of every host and installs
                        its requirements; repeat it after changes
  start -- COMMAND      runs the command in ~/meshlm on every host, independent of this connection. All hosts must share
                        the file system of --workdir. To set variables: -- env NAME=VALUE COMMAND
  tail [--worker=all]   follows the log of host 0 (--worker=all: of all hosts); lines begin with their process and host
  stop                  sends SIGTERM on every host, so that training saves and ends; the same `start` continues it
  delete                deletes the TPU VMs

  --queued              requests a queued resource, which waits until there is capacity
  --slices=N            requests N slices of the type as one queued resource (multislice); implies --queued
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

# on WORKERS COMMAND...: runs a command on all hosts of all slices (WORKERS is `all`), or on this host of slice 0.
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
  # Files that this checkout no longer has are deleted there, too.
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
  [ "$queued" = no ] || all=(--force) # else a queued resource that still has TPU VMs can't be deleted
  run "${tpus[@]}" "$kind" delete "$name" "${place[@]}" "${all[@]}"
}

"$subcommand"
